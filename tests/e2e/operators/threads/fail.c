/*
 * Loaded before the C library (LD_PRELOAD): once the file FAIL_FILE is there, the thread FAIL_THREAD is told that it
 * cannot wait for its sockets, as soon as one of them has something to say.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

static int fails(void) {
    const char *thread = getenv("FAIL_THREAD"), *file = getenv("FAIL_FILE");
    char name[16] = "";
    prctl(PR_GET_NAME, name);
    return thread && file && strcmp(name, thread) == 0 && access(file, F_OK) == 0;
}

int epoll_wait(int epoll, struct epoll_event *events, int len, int timeout) {
    static int (*next)(int, struct epoll_event *, int, int);
    if (!next)
        next = (int (*)(int, struct epoll_event *, int, int))dlsym(RTLD_NEXT, "epoll_wait");
    int ready = next(epoll, events, len, timeout);
    if (!fails())
        return ready;
    errno = EBADF;
    return -1;
}
