/* The wall clock as CLOCK_FILE sets it: seconds to add, read anew each time. For LD_PRELOAD; the monotonic clock stays. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long offset_s(void) {
    const char *path = getenv("CLOCK_FILE");
    char text[32] = "";
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return 0;
    if (read(file, text, sizeof text - 1) < 0)
        text[0] = 0;
    close(file);
    return atol(text);
}

int clock_gettime(clockid_t which, struct timespec *into) {
    int failed = syscall(SYS_clock_gettime, which, into);
    if (!failed && which == CLOCK_REALTIME)
        into->tv_sec += offset_s();
    return failed;
}
