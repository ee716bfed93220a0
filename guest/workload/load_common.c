// SPDX-License-Identifier: GPL-2.0-or-later
/* Checks, patterns and the partner process. */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "optload.h"

#define MAX_LINKS	8

struct self self;

static struct {
	int in;
	int out;
} links[MAX_LINKS];
static int nr_links;

/* Only the first error's text is kept: what follows is often its echo. */
void report(const char *text, ...)
{
	struct shared *shared = self.shared;
	va_list args;

	__atomic_fetch_add(&self.slot->errors, 1, __ATOMIC_RELAXED);
	if (__atomic_exchange_n(&shared->error_claimed, 1, __ATOMIC_RELAXED))
		return;
	va_start(args, text);
	vsnprintf(shared->error, sizeof(shared->error), text, args);
	va_end(args);
	/* Pairs with the acquire in write_state(): the text before the flag. */
	__atomic_store_n(&shared->error_ready, 1, __ATOMIC_RELEASE);
}

bool check(bool ok, const char *what, const char *file, int line)
{
	int err = errno;

	__atomic_fetch_add(&self.slot->checks, 1, __ATOMIC_RELAXED);
	if (!ok)
		report("worker %u, %s:%d: not true: %s (errno %d, %s)", self.id,
		       file, line, what, err, strerror(err));
	return ok;
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 31;
	x *= 0x9e3779b97f4a7c15;
	x ^= x >> 29;
	return x;
}

uint32_t random32(void)
{
	self.seed = mix(self.seed + 0x632be59bd9b4e019);
	return self.seed >> 32;
}

size_t random_size(size_t most)
{
	return 1 + random32() % most;
}

void fill(void *buffer, size_t size, uint64_t key)
{
	unsigned char *bytes = buffer;
	uint64_t word = mix(key);
	size_t i;

	for (i = 0; i + 8 <= size; i += 8, word += key | 1)
		memcpy(bytes + i, &word, 8);
	memcpy(bytes + i, &word, size - i);
}

bool filled(const void *buffer, size_t size, uint64_t key)
{
	const unsigned char *bytes = buffer;
	uint64_t word = mix(key);
	size_t i;

	for (i = 0; i + 8 <= size; i += 8, word += key | 1)
		if (memcmp(bytes + i, &word, 8))
			return false;
	return !memcmp(bytes + i, &word, size - i);
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

bool read_all(int fd, void *buffer, size_t size)
{
	char *bytes = buffer;

	while (size) {
		ssize_t got = read(fd, bytes, size);

		if (got <= 0)
			return false;
		bytes += got;
		size -= got;
	}
	return true;
}

bool write_all(int fd, const void *buffer, size_t size)
{
	const char *bytes = buffer;

	while (size) {
		ssize_t put = write(fd, bytes, size);

		if (put <= 0)
			return false;
		bytes += put;
		size -= put;
	}
	return true;
}

const char *own_path(const char *name)
{
	static char path[512];

	snprintf(path, sizeof(path), "%s/%u-%s", self.dir, self.id, name);
	return path;
}

pid_t fork_helper(void)
{
	pid_t worker = getpid();
	pid_t pid = fork();

	if (pid)
		return pid;
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != worker)
		_exit(0);
	return 0;
}

void partner_link(int in, int out)
{
	if (!CHECK(nr_links < MAX_LINKS))
		return;
	links[nr_links].in = in;
	links[nr_links].out = out;
	nr_links++;
}

static void partner(void)
{
	static char buffer[65536];
	struct epoll_event events[MAX_LINKS];
	int poller = epoll_create1(0);
	int ready, i;

	for (i = 0; i < nr_links; i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.u32 = i };

		CHECK(!epoll_ctl(poller, EPOLL_CTL_ADD, links[i].in, &event));
	}
	for (;;) {
		ready = epoll_wait(poller, events, MAX_LINKS, -1);
		if (!CHECK(ready > 0))
			_exit(1);
		for (i = 0; i < ready; i++) {
			int link = events[i].data.u32;
			ssize_t got = read(links[link].in, buffer, sizeof(buffer));

			if (got > 0 && write_all(links[link].out, buffer, got))
				continue;
			/* Else the worker has gone, or it is an error. */
			CHECK(got == 0 || __atomic_load_n(&self.shared->stop,
							  __ATOMIC_RELAXED));
			_exit(0);
		}
	}
}

bool partner_start(void)
{
	pid_t pid;

	if (!nr_links)
		return true;
	pid = fork_helper();
	if (!pid)
		partner();
	return CHECK(pid > 0);
}
