/* A disk that fills up or a machine that loses power, for tests of what a run leaves behind: preloaded (LD_PRELOAD), it counts what a process does
 * to files under $FAKE_DISK.
 *
 *   FAKE_DISK_BYTES=n   after n bytes, write() fails with ENOSPC, the last one having written what still fitted
 *   FAKE_DISK_KILL=n    the n-th operation (write, fsync, rename) is not done: the process is killed instead
 *
 * Linux with glibc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static long limit(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : LONG_MAX;
}

/* Whether `path` lies under $FAKE_DISK. */
static int watched(const char *path) {
    const char *root = getenv("FAKE_DISK");
    return root && strncmp(path, root, strlen(root)) == 0;
}

static int watched_file(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return watched(path);
}

/* One operation on the disk. */
static void operate(void) {
    static long done;
    if (__atomic_add_fetch(&done, 1, __ATOMIC_SEQ_CST) >= limit("FAKE_DISK_KILL"))
        kill(getpid(), SIGKILL);
}

ssize_t write(int fd, const void *data, size_t size) {
    static long written;
    ssize_t (*real)(int, const void *, size_t) = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (!watched_file(fd))
        return real(fd, data, size);
    operate();
    long left = limit("FAKE_DISK_BYTES") - __atomic_load_n(&written, __ATOMIC_SEQ_CST);
    if (left <= 0 && size > 0) {
        errno = ENOSPC;
        return -1;
    }
    ssize_t done = real(fd, data, (long)size < left ? size : (size_t)left);
    if (done > 0)
        __atomic_add_fetch(&written, done, __ATOMIC_SEQ_CST);
    return done;
}

int fsync(int fd) {
    if (watched_file(fd))
        operate();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int fdatasync(int fd) {
    if (watched_file(fd))
        operate();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

int rename(const char *from, const char *to) {
    if (watched(from))
        operate();
    return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename"))(from, to);
}
