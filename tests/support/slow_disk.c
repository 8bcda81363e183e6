/* Preloaded into a process: reads of files below CWM_SLOW_ROOT take as long as on a disk of CWM_SLOW_RATE bytes per
   second, the number in that file. One read at a time passes, as on one disk. Without a number nothing is slowed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t disk = PTHREAD_MUTEX_INITIALIZER;

static double rate(void)
{
    const char *path = getenv("CWM_SLOW_RATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    double bytes = 0;
    if (file) {
        if (fscanf(file, "%lf", &bytes) != 1)
            bytes = 0;
        fclose(file);
    }
    return bytes;
}

static int is_slow(int descriptor)
{
    const char *root = getenv("CWM_SLOW_ROOT");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return root && length > 0 && (path[length] = 0, strncmp(path, root, strlen(root)) == 0);
}

ssize_t read(int descriptor, void *into, size_t size)
{
    static ssize_t (*real)(int, void *, size_t);
    static __thread int inside;
    if (!real)
        real = (ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
    if (inside || size < 4096)
        return real(descriptor, into, size);
    inside = 1;
    double bytes = is_slow(descriptor) ? rate() : 0;
    inside = 0;
    if (bytes <= 0)
        return real(descriptor, into, size);
    pthread_mutex_lock(&disk);
    ssize_t got = real(descriptor, into, size);
    if (got > 0) {
        double seconds = got / bytes;
        struct timespec pause = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
        nanosleep(&pause, NULL);
    }
    pthread_mutex_unlock(&disk);
    return got;
}
