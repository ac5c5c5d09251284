/* QEMU TCG plugin (API version 1): the guest instructions that have been executed, written down at marks.

   The guest makes a mark by the system call MARK, a number that no kernel has; it fails and changes nothing. With
   "clocks=1" the guest's readings of the clock are written down as well. One line each, to the file "out=PATH":

       mark OWN ALL        OWN: instructions of the thread that made the mark; ALL: of all threads together
       clock OWN ALL

   QEMU's header is not needed: the few functions that are used are declared here. */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { MARK = 4000001, CLOCK_GETTIME = 113 /* of the arm64 Linux kernel */, MOST_THREADS = 4096 };

typedef uint64_t PluginId;
struct translation;
struct machine;
typedef void (*OnTranslation)(PluginId, struct translation *);
typedef void (*OnExecution)(unsigned thread, void *instructions);
typedef void (*OnSystemCall)(PluginId, unsigned thread, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t,
                             uint64_t, uint64_t, uint64_t, uint64_t);
typedef void (*OnExit)(PluginId, void *);

void qemu_plugin_register_vcpu_tb_trans_cb(PluginId, OnTranslation);
void qemu_plugin_register_vcpu_tb_exec_cb(struct translation *, OnExecution, int registers, void *);
void qemu_plugin_register_vcpu_syscall_cb(PluginId, OnSystemCall);
void qemu_plugin_register_atexit_cb(PluginId, OnExit, void *);
size_t qemu_plugin_tb_n_insns(const struct translation *);

EXPORT int qemu_plugin_version = 1;

static uint64_t executed[MOST_THREADS];
static FILE *out;
static int clocks;

/* A counter a thread: threads that run at the same time never write to the same one. */
static void on_execution(unsigned thread, void *instructions) {
    executed[thread % MOST_THREADS] += (uintptr_t)instructions;
}

static void on_translation(PluginId id, struct translation *block) {
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_execution, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void write_down(const char *what, unsigned thread) {
    uint64_t all = 0;
    for (int i = 0; i < MOST_THREADS; i++) all += executed[i];
    fprintf(out, "%s %" PRIu64 " %" PRIu64 "\n", what, executed[thread % MOST_THREADS], all);
}

static void on_system_call(PluginId id, unsigned thread, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                           uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    (void)id, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number == MARK) write_down("mark", thread);
    else if (clocks && number == CLOCK_GETTIME) write_down("clock", thread);
}

static void at_exit(PluginId id, void *nothing) {
    (void)id, (void)nothing;
    fclose(out);
}

EXPORT int qemu_plugin_install(PluginId id, const struct machine *machine, int count, char **arguments) {
    (void)machine;
    for (int i = 0; i < count; i++) {
        if (strncmp(arguments[i], "out=", 4) == 0) out = fopen(arguments[i] + 4, "w");
        if (strcmp(arguments[i], "clocks=1") == 0) clocks = 1;
    }
    if (out == NULL) {
        fprintf(stderr, "count: out=PATH is missing or cannot be written\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    qemu_plugin_register_atexit_cb(id, at_exit, NULL);
    return 0;
}
