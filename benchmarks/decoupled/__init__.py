"""The decoupled transformer: what it saves, what it costs, and what it keeps."""
