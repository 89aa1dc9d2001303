/* Makes system calls on the files below a directory fail, or read and write less than was asked for. A program preloads
 * it (LD_PRELOAD) and arms it: see __init__.py. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

enum { OFF, ONCE, ALWAYS, SHORT };

static atomic_int mode, fails_with;
static atomic_long first, seen;
static char wanted[64], marker[256], last[512];
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static __thread int inside;

/* Count the calls in `name`, which are separated by commas (empty: all), on paths that contain `path`. `how`: ONCE fails
 * the n-th (from 1), ALWAYS that one and each later one; SHORT lets each of them move half of its bytes. */
void failing_calls_arm(const char *name, const char *path, long n, int error, int how)
{
    atomic_store(&mode, OFF);
    snprintf(wanted, sizeof wanted, ",%s,", name);
    snprintf(marker, sizeof marker, "%s", path);
    last[0] = 0;
    atomic_store(&fails_with, error);
    atomic_store(&first, n);
    atomic_store(&seen, 0);
    atomic_store(&mode, how);
}

/* The number of calls counted since it was armed. */
long failing_calls_disarm(void)
{
    atomic_store(&mode, OFF);
    return atomic_load(&seen);
}

/* Name and path of the n-th call; empty if there was none. */
const char *failing_calls_last(void) { return last; }

static int named(const char *name)
{
    char text[64];
    snprintf(text, sizeof text, ",%s,", name);
    return wanted[1] == ',' || strstr(wanted, text) != NULL;
}

static int hits(const char *name, const char *path)
{
    long n;
    int how = atomic_load(&mode);
    if (how == OFF || path == NULL || strstr(path, marker) == NULL || !named(name))
        return 0;
    n = atomic_fetch_add(&seen, 1) + 1;
    if (n < atomic_load(&first) || (how == ONCE && n > atomic_load(&first)))
        return 0;
    pthread_mutex_lock(&guard);
    if (n == atomic_load(&first))
        snprintf(last, sizeof last, "%s %s", name, path);
    pthread_mutex_unlock(&guard);
    return how;
}

static int on_fd(const char *name, int fd)
{
    char link[64], path[4096];
    ssize_t size;
    if (atomic_load(&mode) == OFF || inside)
        return 0;
    inside = 1;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = readlink(link, path, sizeof path - 1);
    inside = 0;
    if (size <= 0)
        return 0;
    path[size] = 0;
    return hits(name, path);
}

static int on_path(const char *name, int at, const char *path)
{
    if (atomic_load(&mode) == OFF)
        return 0;
    if (path != NULL && path[0] != '/' && at >= 0) {
        char link[64], full[8192];
        ssize_t size;
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        inside = 1;
        size = readlink(link, full, 4096);
        inside = 0;
        if (size > 0) {
            full[size] = 0;
            strncat(full, "/", 2);
            strncat(full, path, 4000);
            return hits(name, full);
        }
    }
    return hits(name, path);
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)
#define FAIL(code) do { errno = atomic_load(&fails_with); return (code); } while (0)
#define LESS(how, size) ((how) == SHORT && (size) > 1 ? (size) / 2 : (size))

#define OPEN(symbol, label) \
int symbol(const char *path, int flags, ...) \
{ \
    mode_t bits = 0; \
    va_list rest; \
    int how; \
    REAL(int, symbol, const char *, int, ...); \
    va_start(rest, flags); bits = va_arg(rest, mode_t); va_end(rest); \
    how = on_path(label, -1, path); \
    if (how && how != SHORT) FAIL(-1); \
    return real(path, flags, bits); \
}
OPEN(open, "open")
OPEN(open64, "open")
#define OPENAT(symbol, label) \
int symbol(int at, const char *path, int flags, ...) \
{ \
    mode_t bits = 0; \
    va_list rest; \
    int how; \
    REAL(int, symbol, int, const char *, int, ...); \
    va_start(rest, flags); bits = va_arg(rest, mode_t); va_end(rest); \
    how = on_path(label, at, path); \
    if (how && how != SHORT) FAIL(-1); \
    return real(at, path, flags, bits); \
}
OPENAT(openat, "open")
OPENAT(openat64, "open")

ssize_t read(int fd, void *data, size_t size)
{
    REAL(ssize_t, read, int, void *, size_t);
    int how = on_fd("read", fd);
    if (how && how != SHORT) FAIL(-1);
    return real(fd, data, LESS(how, size));
}
ssize_t write(int fd, const void *data, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t);
    int how = on_fd("write", fd);
    if (how && how != SHORT) FAIL(-1);
    return real(fd, data, LESS(how, size));
}
#define PREAD(symbol, kind) \
ssize_t symbol(int fd, void *data, size_t size, kind at) \
{ \
    REAL(ssize_t, symbol, int, void *, size_t, kind); \
    int how = on_fd("pread", fd); \
    if (how && how != SHORT) FAIL(-1); \
    return real(fd, data, LESS(how, size), at); \
}
PREAD(pread, off_t)
PREAD(pread64, off64_t)
#define PWRITE(symbol, kind) \
ssize_t symbol(int fd, const void *data, size_t size, kind at) \
{ \
    REAL(ssize_t, symbol, int, const void *, size_t, kind); \
    int how = on_fd("pwrite", fd); \
    if (how && how != SHORT) FAIL(-1); \
    return real(fd, data, LESS(how, size), at); \
}
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags)
{
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    int how = on_fd("copy_file_range", to);
    if (how && how != SHORT) FAIL(-1);
    return real(from, a, to, b, LESS(how, size), flags);
}
#define SENDFILE(symbol, kind) \
ssize_t symbol(int to, int from, kind *at, size_t size) \
{ \
    REAL(ssize_t, symbol, int, int, kind *, size_t); \
    int how = on_fd("sendfile", from); \
    if (how && how != SHORT) FAIL(-1); \
    return real(to, from, at, LESS(how, size)); \
}
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

#define ONE_FD(symbol, label) \
int symbol(int fd) \
{ \
    REAL(int, symbol, int); \
    int how = on_fd(label, fd); \
    if (how && how != SHORT) FAIL(-1); \
    return real(fd); \
}
ONE_FD(fsync, "fsync")
ONE_FD(fdatasync, "fsync")
int close(int fd)
{
    REAL(int, close, int);
    int how = on_fd("close", fd), done = real(fd);
    if (how && how != SHORT) FAIL(-1);
    return done;
}
#define TRUNCATE(symbol, kind) \
int symbol(int fd, kind size) \
{ \
    REAL(int, symbol, int, kind); \
    int how = on_fd("ftruncate", fd); \
    if (how && how != SHORT) FAIL(-1); \
    return real(fd, size); \
}
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)
int fchmod(int fd, mode_t bits)
{
    REAL(int, fchmod, int, mode_t);
    int how = on_fd("fchmod", fd);
    if (how && how != SHORT) FAIL(-1);
    return real(fd, bits);
}
int futimens(int fd, const struct timespec times[2])
{
    REAL(int, futimens, int, const struct timespec *);
    int how = on_fd("utime", fd);
    if (how && how != SHORT) FAIL(-1);
    return real(fd, times);
}
int utimensat(int at, const char *path, const struct timespec times[2], int flags)
{
    REAL(int, utimensat, int, const char *, const struct timespec *, int);
    int how = on_path("utime", at, path);
    if (how && how != SHORT) FAIL(-1);
    return real(at, path, times, flags);
}
int flock(int fd, int operation)
{
    REAL(int, flock, int, int);
    int how = on_fd("flock", fd);
    if (how && how != SHORT) FAIL(-1);
    return real(fd, operation);
}
int fcntl64(int fd, int command, ...)
{
    void *argument;
    va_list rest;
    REAL(int, fcntl64, int, int, ...);
    va_start(rest, command); argument = va_arg(rest, void *); va_end(rest);
    if (command == F_SETLK || command == F_SETLKW || command == F_GETLK || command == F_OFD_SETLK) {
        int how = on_fd("fcntl", fd);
        if (how && how != SHORT) FAIL(-1);
    }
    return real(fd, command, argument);
}
int fcntl(int fd, int command, ...)
{
    void *argument;
    va_list rest;
    REAL(int, fcntl, int, int, ...);
    va_start(rest, command); argument = va_arg(rest, void *); va_end(rest);
    if (command == F_SETLK || command == F_SETLKW || command == F_GETLK || command == F_OFD_SETLK) {
        int how = on_fd("fcntl", fd);
        if (how && how != SHORT) FAIL(-1);
    }
    return real(fd, command, argument);
}
void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t at)
{
    REAL(void *, mmap64, void *, size_t, int, int, int, off64_t);
    if (fd >= 0) {
        int how = on_fd("mmap", fd);
        if (how && how != SHORT) FAIL(MAP_FAILED);
    }
    return real(address, size, protection, flags, fd, at);
}

#define TWO_PATHS(symbol, label) \
int symbol(const char *old, const char *new) \
{ \
    REAL(int, symbol, const char *, const char *); \
    int how = on_path(label, -1, new); \
    if (how && how != SHORT) FAIL(-1); \
    return real(old, new); \
}
TWO_PATHS(rename, "rename")
TWO_PATHS(link, "link")
int renameat(int a, const char *old, int b, const char *new)
{
    REAL(int, renameat, int, const char *, int, const char *);
    int how = on_path("rename", b, new);
    if (how && how != SHORT) FAIL(-1);
    return real(a, old, b, new);
}
int renameat2(int a, const char *old, int b, const char *new, unsigned flags)
{
    REAL(int, renameat2, int, const char *, int, const char *, unsigned);
    int how = on_path("rename", b, new);
    if (how && how != SHORT) FAIL(-1);
    return real(a, old, b, new, flags);
}
int linkat(int a, const char *old, int b, const char *new, int flags)
{
    REAL(int, linkat, int, const char *, int, const char *, int);
    int how = on_path("link", b, new);
    if (how && how != SHORT) FAIL(-1);
    return real(a, old, b, new, flags);
}
int unlink(const char *path)
{
    REAL(int, unlink, const char *);
    int how = on_path("unlink", -1, path);
    if (how && how != SHORT) FAIL(-1);
    return real(path);
}
int unlinkat(int at, const char *path, int flags)
{
    REAL(int, unlinkat, int, const char *, int);
    int how = on_path(flags & AT_REMOVEDIR ? "rmdir" : "unlink", at, path);
    if (how && how != SHORT) FAIL(-1);
    return real(at, path, flags);
}
int rmdir(const char *path)
{
    REAL(int, rmdir, const char *);
    int how = on_path("rmdir", -1, path);
    if (how && how != SHORT) FAIL(-1);
    return real(path);
}
int mkdir(const char *path, mode_t bits)
{
    REAL(int, mkdir, const char *, mode_t);
    int how = on_path("mkdir", -1, path);
    if (how && how != SHORT) FAIL(-1);
    return real(path, bits);
}
int mkdirat(int at, const char *path, mode_t bits)
{
    REAL(int, mkdirat, int, const char *, mode_t);
    int how = on_path("mkdir", at, path);
    if (how && how != SHORT) FAIL(-1);
    return real(at, path, bits);
}
#define STAT(symbol, structure) \
int symbol(const char *path, struct structure *found) \
{ \
    REAL(int, symbol, const char *, struct structure *); \
    int how = on_path("stat", -1, path); \
    if (how && how != SHORT) FAIL(-1); \
    return real(path, found); \
}
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)
#define FSTAT(symbol, structure) \
int symbol(int fd, struct structure *found) \
{ \
    REAL(int, symbol, int, struct structure *); \
    int how = on_fd("fstat", fd); \
    if (how && how != SHORT) FAIL(-1); \
    return real(fd, found); \
}
FSTAT(fstat, stat)
FSTAT(fstat64, stat64)
#define FSTATAT(symbol, structure) \
int symbol(int at, const char *path, struct structure *found, int flags) \
{ \
    REAL(int, symbol, int, const char *, struct structure *, int); \
    int how = on_path("stat", at, path); \
    if (how && how != SHORT) FAIL(-1); \
    return real(at, path, found, flags); \
}
FSTATAT(fstatat, stat)
FSTATAT(fstatat64, stat64)
DIR *opendir(const char *path)
{
    REAL(DIR *, opendir, const char *);
    int how = on_path("opendir", -1, path);
    if (how && how != SHORT) FAIL(NULL);
    return real(path);
}
DIR *fdopendir(int fd)
{
    REAL(DIR *, fdopendir, int);
    int how = on_fd("opendir", fd);
    if (how && how != SHORT) FAIL(NULL);
    return real(fd);
}
struct dirent64 *readdir64(DIR *dir)
{
    REAL(struct dirent64 *, readdir64, DIR *);
    int how = on_fd("readdir", dirfd(dir));
    if (how && how != SHORT) FAIL(NULL);
    return real(dir);
}
struct dirent *readdir(DIR *dir)
{
    REAL(struct dirent *, readdir, DIR *);
    int how = on_fd("readdir", dirfd(dir));
    if (how && how != SHORT) FAIL(NULL);
    return real(dir);
}
int statvfs64(const char *path, struct statvfs64 *found)
{
    REAL(int, statvfs64, const char *, struct statvfs64 *);
    int how = on_path("statvfs", -1, path);
    if (how && how != SHORT) FAIL(-1);
    return real(path, found);
}
int statvfs(const char *path, struct statvfs *found)
{
    REAL(int, statvfs, const char *, struct statvfs *);
    int how = on_path("statvfs", -1, path);
    if (how && how != SHORT) FAIL(-1);
    return real(path, found);
}
