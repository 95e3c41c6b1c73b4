/*
 * A library to preload (LD_PRELOAD) that makes one system call fail: the n-th after arm_fault() that is about a file
 * below a folder. It replaces the functions of glibc that Python and PyTorch call. It does not see what glibc calls
 * itself, in fopen and closedir, and leaves out what cannot fail on a disk, such as lseek.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Faults besides errnos: one byte is read or written; likewise, and the call after it fails with ENOSPC. */
enum { SHORT = -1, SHORT_THEN_FULL = -2 };

static char folder[4096];
static size_t length;  /* of `folder`; 0: not armed yet */
static int journal, calls, fails_at, fault_there;

/* Note the calls about files below the absolute path `where` in the file `list`, one a line: 'open out/last.pt'. The
   n-th fails with the errno `fault`, or as above; n = 0: none does. */
void arm_fault(const char *where, const char *list, int n, int fault)
{
    journal = open(list, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    fails_at = n;
    fault_there = fault;
    length = strlen(strcpy(folder, where));
}

/* How a call about `path`, or about `fd` if that is NULL, is to go: 0: well; -1: to fail, errno is set; 1: short. */
static int fails(const char *call, const char *path, int fd)
{
    static ssize_t (*real_write)(int, const void *, size_t);
    char name[8192] = "", line[8320];
    int before = errno, size;

    if (!length)
        return 0;
    if (!path) {
        snprintf(line, sizeof line, "/proc/self/fd/%d", fd);
        size = readlink(line, name, sizeof name - 1);
        name[size < 0 ? 0 : size] = 0;
    } else if (path[0] != '/' && getcwd(name, 4000)) {
        size = strlen(name);
        snprintf(name + size, sizeof name - size, "/%s", path);
    } else {
        snprintf(name, sizeof name, "%s", path);
    }
    errno = before;
    if (strncmp(name, folder, length) || name[length] != '/')
        return 0;
    if (!real_write)
        real_write = dlsym(RTLD_NEXT, "write");
    size = snprintf(line, sizeof line, "%s %s\n", call, name + length + 1);
    if (real_write(journal, line, size) != size || ++calls != fails_at)
        return 0;
    if (fault_there < 0) {
        fails_at += fault_there == SHORT_THEN_FULL;
        fault_there = ENOSPC;
        return 1;
    }
    errno = fault_there;
    return -1;
}

/* A function of glibc, noted as `call`, which is about `path`, or `fd` if that is NULL, and may return `failed`. */
#define FUNCTION(type, name, call, parameters, arguments, path, fd, failed) \
    type name parameters \
    { \
        static type (*real) parameters; \
        if (!real) \
            real = dlsym(RTLD_NEXT, #name); \
        return fails(call, path, fd) ? failed : real arguments; \
    }
#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        static int (*real)(const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (!real) \
            real = dlsym(RTLD_NEXT, #name); \
        return fails("open", path, -1) ? -1 : real(path, flags, mode); \
    }
#define MOVE(name, data_type) \
    ssize_t name(int fd, data_type data, size_t size) \
    { \
        static ssize_t (*real)(int, data_type, size_t); \
        int fault = fails(#name, NULL, fd); \
        if (!real) \
            real = dlsym(RTLD_NEXT, #name); \
        return fault < 0 ? -1 : real(fd, data, fault && size ? 1 : size); \
    }

OPEN(open)
OPEN(open64)
MOVE(read, void *)
MOVE(write, const void *)
FUNCTION(int, close, "close", (int fd), (fd), NULL, fd, (real(fd), -1))  /* Linux closes it all the same */
FUNCTION(int, fsync, "fsync", (int fd), (fd), NULL, fd, -1)
FUNCTION(int, ftruncate64, "ftruncate", (int fd, off64_t size), (fd, size), NULL, fd, -1)
FUNCTION(int, flock, "flock", (int fd, int how), (fd, how), NULL, fd, -1)
FUNCTION(int, fstat, "fstat", (int fd, struct stat *to), (fd, to), NULL, fd, -1)
FUNCTION(int, fstat64, "fstat", (int fd, struct stat64 *to), (fd, to), NULL, fd, -1)
FUNCTION(int, stat, "stat", (const char *path, struct stat *to), (path, to), path, -1, -1)
FUNCTION(int, stat64, "stat", (const char *path, struct stat64 *to), (path, to), path, -1, -1)
FUNCTION(int, lstat64, "stat", (const char *path, struct stat64 *to), (path, to), path, -1, -1)
FUNCTION(int, statvfs64, "statvfs", (const char *path, struct statvfs64 *to), (path, to), path, -1, -1)
FUNCTION(void *, mmap, "mmap", (void *to, size_t size, int access, int flags, int fd, off_t from),
         (to, size, access, flags, fd, from), NULL, fd, MAP_FAILED)
FUNCTION(void *, mmap64, "mmap", (void *to, size_t size, int access, int flags, int fd, off64_t from),
         (to, size, access, flags, fd, from), NULL, fd, MAP_FAILED)
FUNCTION(int, mkdir, "mkdir", (const char *path, mode_t mode), (path, mode), path, -1, -1)
FUNCTION(int, rmdir, "rmdir", (const char *path), (path), path, -1, -1)
FUNCTION(int, unlink, "unlink", (const char *path), (path), path, -1, -1)
FUNCTION(int, rename, "rename", (const char *path, const char *to), (path, to), path, -1, -1)
FUNCTION(DIR *, opendir, "opendir", (const char *path), (path), path, -1, NULL)
FUNCTION(struct dirent64 *, readdir64, "readdir", (DIR *of), (of), NULL, dirfd(of), NULL)
