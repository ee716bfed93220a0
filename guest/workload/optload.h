/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * optload: what its parts share.
 *
 * A *family* is a set of ways into the kernel, a *turn* one short pass
 * through it.  Each worker process takes the turns of all families in an
 * order that interleaves them by weight.
 */
#ifndef OPTLOAD_H
#define OPTLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ARRAY_SIZE(array)	(sizeof(array) / sizeof((array)[0]))
#define LIKE_PRINTF		format(printf, 1, 2)

#define WORKERS_PER_CPU	2
#define MAX_WORKERS	256
#define ERROR_TEXT	256
#define MAX_FAMILIES	24
/* A wait for something that must come at once ends in an error after this. */
#define PATIENCE_MS	20000

struct family {
	const char *name;
	unsigned int weight;		/* turns in one pass of the mix */
	bool (*setup)(void);		/* once for each worker; may be NULL */
	void (*turn)(void);
	bool extra;			/* needs a module: only where it is named */
};

extern const struct family families[];
extern const unsigned int nr_families;

struct options {
	unsigned int seconds;		/* 0: until a signal comes */
	unsigned int cpus;		/* 0: all that we may use */
	const char *state;
	bool chosen[MAX_FAMILIES];
};

/* One worker's counts, in memory that it shares with the main process. */
struct slot {
	_Alignas(64) uint64_t rounds;	/* turns finished */
	uint64_t checks;
	uint64_t errors;
	uint32_t family;		/* whose turn it is */
};

struct shared {
	uint32_t stop;
	uint32_t error_claimed;
	uint32_t error_ready;
	char error[ERROR_TEXT];		/* the first one */
};

/* The worker that this process is. */
struct self {
	struct shared *shared;
	struct slot *slot;
	unsigned int id;
	uint64_t seed;
	const char *dir;		/* where to make files */
};

extern struct self self;

/* Counts a check, and an error if it failed; says what it was given. */
#define CHECK(expr)	check((expr), #expr, __FILE__, __LINE__)

bool check(bool ok, const char *what, const char *file, int line);
void report(const char *text, ...) __attribute__((LIKE_PRINTF));

uint32_t random32(void);
/* A number from 1 to most. */
size_t random_size(size_t most);
/* Fills a buffer with what only this call's key gives. */
void fill(void *buffer, size_t size, uint64_t key);
bool filled(const void *buffer, size_t size, uint64_t key);
uint64_t now_ns(void);
/* What a read of exactly this size must give, in as many pieces as it takes. */
bool read_all(int fd, void *buffer, size_t size);
bool write_all(int fd, const void *buffer, size_t size);
/* A path in the worker's own directory; valid until the next call. */
const char *own_path(const char *name);

/*
 * The partner: a process that sends back what it reads from @in to @out.
 * Links are added in the families' setups, before it is started.
 */
void partner_link(int in, int out);
bool partner_start(void);
/* A child that dies with its worker. */
pid_t fork_helper(void);
/* From now on the worker's mounts are its own, and end with it. */
bool own_mounts(void);
/* The number of names in a directory, without . and .. */
int count_names(const char *path);

/* Runs the load from start to end; returns how many errors there were. */
unsigned long long run_workers(const struct options *options);
/* The main process holds these open for the whole run. */
bool hold_open(void);
/* Packets seen on lo so far, by the receiver that hold_open() opened. */
uint64_t count_packets(void);

bool setup_pipe(void);
void turn_pipe(void);
bool setup_echo(void);
void turn_echo(void);
bool setup_unix(void);
void turn_unix(void);
bool setup_event(void);
void turn_event(void);
bool setup_futex(void);
void turn_futex(void);
bool setup_tcp4(void);
void turn_tcp4(void);
bool setup_tcp6(void);
void turn_tcp6(void);
bool setup_udp4(void);
void turn_udp4(void);
bool setup_udp6(void);
void turn_udp6(void);
bool setup_file(void);
void turn_file(void);
bool setup_stat(void);
void turn_stat(void);
void turn_proc(void);
bool setup_splice(void);
void turn_splice(void);
bool setup_dev(void);
void turn_dev(void);
void turn_syscall(void);
bool setup_timer(void);
void turn_timer(void);
bool setup_signal(void);
void turn_signal(void);
void turn_fork(void);
bool setup_memory(void);
void turn_memory(void);
bool setup_veth(void);
void turn_veth(void);
bool setup_fuse(void);
void turn_fuse(void);
bool setup_overlay(void);
void turn_overlay(void);

/* The exit code that `optload --exit-code N` returns is N, at once. */
#define EXIT_CODE_OPTION	"--exit-code"

#endif /* OPTLOAD_H */
