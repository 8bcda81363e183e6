/* Keeps, beside a store, what of it a power cut at this instant would leave at the very least.

   Preloaded into every process that writes below CWM_POWERCUT_ROOT. Once the real fsync or fdatasync of a file there has
   succeeded, and before its caller learns of it, the file's content is copied to CWM_POWERCUT_IMAGE/<identity>.file;
   of a folder its entries are written to <identity>.dir (the root's to root.dir), one record for each: kind, space,
   identity, space, name, NUL. Each copy is moved into place whole, so a kill -9 at any instant leaves the image right.

   Nothing else makes anything durable here: no rename, no close, no O_DIRECT, no O_SYNC, no sync_file_range. What a
   copy contains may have been written a moment after the fsync by another thread; a disk may do that, too.

   An identity is the inode's file handle, which unlike its number is never given to a later file. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define IDENTITY_BYTES 300
#define HANDLE_BYTES 128

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static void give_up(const char *what)
{
    /* An image that may be wrong must not be judged by. */
    fprintf(stderr, "powercut: %s: %s\n", what, strerror(errno));
    abort();
}

static int by_birth(int folder, const char *name, char *identity)
{
    struct statx found;
    if (statx(folder, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &found) != 0)
        return -1;
    snprintf(identity, IDENTITY_BYTES, "b%llx-%llx-%x", (unsigned long long)found.stx_ino,
             (unsigned long long)found.stx_btime.tv_sec, found.stx_btime.tv_nsec);
    return 0;
}

/* The identity of `name` in `folder`, of `folder` itself where the name is empty. -1: see errno. */
int powercut_identity(int folder, const char *name, char *identity)
{
    char space[sizeof(struct file_handle) + HANDLE_BYTES];
    struct file_handle *handle = (struct file_handle *)space;
    int mount;
    handle->handle_bytes = HANDLE_BYTES;
    if (name_to_handle_at(folder, name, handle, &mount, AT_EMPTY_PATH) != 0) {
        if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EPERM)
            return by_birth(folder, name, identity);
        return -1;
    }
    int length = snprintf(identity, IDENTITY_BYTES, "h%x-", (unsigned)handle->handle_type);
    for (unsigned at = 0; at < handle->handle_bytes; at++)
        length += snprintf(identity + length, IDENTITY_BYTES - length, "%02x", handle->f_handle[at]);
    return 0;
}

static void write_entries(int folder, FILE *image)
{
    int again = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = again < 0 ? NULL : fdopendir(again);
    if (entries == NULL)
        give_up("the folder can't be listed");
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        struct stat found;
        char identity[IDENTITY_BYTES];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (fstatat(folder, entry->d_name, &found, AT_SYMLINK_NOFOLLOW) != 0
            || powercut_identity(folder, entry->d_name, identity) != 0) {
            if (errno == ENOENT) /* another thread has removed or renamed it since: then it was not there */
                continue;
            give_up(entry->d_name);
        }
        if (S_ISDIR(found.st_mode) || S_ISREG(found.st_mode))
            fprintf(image, "%c %s %s%c", S_ISDIR(found.st_mode) ? 'd' : 'f', identity, entry->d_name, '\0');
    }
    closedir(entries);
}

static void write_content(int file, FILE *image)
{
    static char buffer[1 << 18];
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", file);
    int again = open(self, O_RDONLY | O_CLOEXEC); /* it may be open for writing only */
    if (again < 0)
        give_up("the file can't be read");
    for (ssize_t got; (got = read(again, buffer, sizeof buffer)) != 0;)
        if (got < 0 || fwrite(buffer, 1, got, image) != (size_t)got)
            give_up("the file can't be copied");
    close(again);
}

static void keep(int descriptor)
{
    const char *root = getenv("CWM_POWERCUT_ROOT"), *folder = getenv("CWM_POWERCUT_IMAGE");
    char self[64], path[PATH_MAX], fresh[PATH_MAX], kept[PATH_MAX], identity[IDENTITY_BYTES];
    struct stat found;
    if (root == NULL || folder == NULL)
        return;
    snprintf(self, sizeof self, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(self, path, sizeof path - 1);
    if (length < 0 || fstat(descriptor, &found) != 0)
        return;
    path[length] = '\0';
    size_t prefix = strlen(root);
    if (strncmp(path, root, prefix) != 0 || (path[prefix] != '/' && path[prefix] != '\0'))
        return;
    if (path[prefix] == '\0')
        strcpy(identity, "root");
    else if (powercut_identity(descriptor, "", identity) != 0)
        give_up(path);
    snprintf(kept, sizeof kept, "%s/%s.%s", folder, identity, S_ISDIR(found.st_mode) ? "dir" : "file");
    snprintf(fresh, sizeof fresh, "%s/%d.new", folder, (int)getpid());
    pthread_mutex_lock(&turn);
    FILE *image = fopen(fresh, "we");
    if (image == NULL)
        give_up(fresh);
    if (S_ISDIR(found.st_mode))
        write_entries(descriptor, image);
    else
        write_content(descriptor, image);
    if (fclose(image) != 0 || rename(fresh, kept) != 0)
        give_up(kept);
    pthread_mutex_unlock(&turn);
}

static int synced(const char *name, int descriptor)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    if (real(descriptor) != 0)
        return -1;
    int before = errno;
    keep(descriptor);
    errno = before;
    return 0;
}

int fsync(int descriptor) { return synced("fsync", descriptor); }

int fdatasync(int descriptor) { return synced("fdatasync", descriptor); }
