/* A disk that refuses and a clock that is set, for one daemon and its children (LD_PRELOAD).

   The harness maps the same file as every process of the daemon (`shim.py` has the layout): a rule strikes at the n-th call
   of a kind on files below one folder, counted over all of those processes; `clock_ns` is added to the wall clock. Nothing
   else of a process is touched: sockets, pipes and files elsewhere pass through. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, RENAME = 4 };
enum { RULES = 8 };

struct rule {
  int64_t calls;  /* kinds of call, a mask */
  int64_t error;  /* errno; 0 for a write that takes half of the bytes */
  int64_t before; /* calls that pass before it strikes */
  int64_t times;  /* how often it strikes */
  int64_t struck; /* how often it did */
};

struct control {
  int64_t clock_ns;
  struct rule rules[RULES];
};

static struct control *control;
static const char *below;
static size_t below_length;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("FAULTS_CONTROL");
  below = getenv("FAULTS_BELOW");
  if (!path || !below) return;
  below_length = strlen(below);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void *found = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (found != MAP_FAILED) control = found;
}

static int inside(const char *path) { return path && !strncmp(path, below, below_length); }

static int file_inside(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return inside(path);
}

/* The rule that strikes this call: its errno, 0 for a short write, -1 for none. */
static int64_t strikes(int kind, int fd, const char *path) {
  if (!control) return -1;
  for (int i = 0; i < RULES; i++) {
    struct rule *rule = &control->rules[i];
    if (!(rule->calls & kind) || __atomic_load_n(&rule->times, __ATOMIC_RELAXED) <= 0) continue;
    if (!(path ? inside(path) : file_inside(fd))) continue;
    if (__atomic_fetch_sub(&rule->before, 1, __ATOMIC_RELAXED) > 0) continue;
    if (__atomic_fetch_sub(&rule->times, 1, __ATOMIC_RELAXED) <= 0) continue;
    __atomic_fetch_add(&rule->struck, 1, __ATOMIC_RELAXED);
    return rule->error;
  }
  return -1;
}

#define REAL(name)                                                         \
  ({                                                                       \
    if (!real_##name) real_##name = dlsym(RTLD_NEXT, #name);               \
    (typeof(&name))real_##name;                                            \
  })

#define WRITER(name, parameters, arguments)                        \
  static void *real_##name;                                                \
  ssize_t name parameters {                                                \
    int64_t error = strikes(WRITE, fd, NULL);                              \
    if (error > 0) { errno = (int)error; return -1; }                      \
    if (error == 0 && count > 1) count /= 2;                               \
    return REAL(name) arguments;                                           \
  }
WRITER(write, (int fd, const void *data, size_t count), (fd, data, count))
WRITER(pwrite, (int fd, const void *data, size_t count, off_t at), (fd, data, count, at))
WRITER(pwrite64, (int fd, const void *data, size_t count, off64_t at), (fd, data, count, at))

#define SYNCER(name)                                                       \
  static void *real_##name;                                                \
  int name(int fd) {                                                       \
    int64_t error = strikes(SYNC, fd, NULL);                               \
    if (error > 0) { errno = (int)error; return -1; }                      \
    return REAL(name)(fd);                                                 \
  }
SYNCER(fsync)
SYNCER(fdatasync)

static void *real_rename;
int rename(const char *from, const char *to) {
  int64_t error = strikes(RENAME, -1, to);
  if (error > 0) { errno = (int)error; return -1; }
  return REAL(rename)(from, to);
}

static int64_t shift(void) { return control ? __atomic_load_n(&control->clock_ns, __ATOMIC_RELAXED) : 0; }

int clock_gettime(clockid_t id, struct timespec *found) {
  int result = (int)syscall(SYS_clock_gettime, id, found);
  int64_t by = shift();
  if (result == 0 && by && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
    int64_t all = (int64_t)found->tv_sec * 1000000000 + found->tv_nsec + by;
    found->tv_sec = all / 1000000000;
    found->tv_nsec = all % 1000000000;
  }
  return result;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone) {
  (void)zone;
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  found->tv_sec = now.tv_sec;
  found->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *found) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (found) *found = now.tv_sec;
  return now.tv_sec;
}
