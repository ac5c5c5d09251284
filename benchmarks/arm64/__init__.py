"""Instructions that an arm64 CPU executes for one inference, counted under emulation."""
