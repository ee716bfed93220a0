// SPDX-License-Identifier: GPL-2.0-or-later
/* The workers, and the main process that watches them. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "optload.h"

#define STATE_PERIOD_NS		250000000
#define STUCK_SECONDS		30

static const struct options *options;
static struct slot *slots;		/* the last one is the main process's */
static unsigned int nr_workers;
static pid_t workers[MAX_WORKERS];

/*
 * The order of turns: each family gets credit by its weight, and the richest
 * pays for the next turn with the sum of all.  So a family's turns lie evenly
 * between the others'.
 */
static unsigned int next_family(const bool *usable, int *credit)
{
	int total = 0;
	unsigned int best = nr_families;
	unsigned int i;

	for (i = 0; i < nr_families; i++) {
		if (!usable[i])
			continue;
		total += families[i].weight;
		credit[i] += families[i].weight;
		if (best == nr_families || credit[i] > credit[best])
			best = i;
	}
	if (best < nr_families)
		credit[best] -= total;
	return best;
}

static void pin(unsigned int worker)
{
	unsigned int nth = worker % options->cpus;
	cpu_set_t allowed, one;
	int cpu;

	if (!CHECK(!sched_getaffinity(0, sizeof(allowed), &allowed)))
		return;
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &allowed) && !nth--)
			break;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	CHECK(!sched_setaffinity(0, sizeof(one), &one));
}

static void work(void)
{
	bool usable[MAX_FAMILIES] = { false };
	int credit[MAX_FAMILIES] = { 0 };
	unsigned int i, skip;

	pin(self.id);
	for (i = 0; i < nr_families; i++)
		usable[i] = options->chosen[i] &&
			    (!families[i].setup || families[i].setup());
	partner_start();
	/* No two workers at the same place of the order. */
	for (skip = self.id * 7; skip; skip--)
		next_family(usable, credit);

	while (!__atomic_load_n(&self.shared->stop, __ATOMIC_RELAXED)) {
		unsigned int family = next_family(usable, credit);

		if (family == nr_families)
			break;
		__atomic_store_n(&self.slot->family, family, __ATOMIC_RELAXED);
		errno = 0;
		families[family].turn();
		__atomic_fetch_add(&self.slot->rounds, 1, __ATOMIC_RELAXED);
	}
	exit(0);
}

static void start_workers(void)
{
	pid_t parent = getpid();
	unsigned int i;

	for (i = 0; i < nr_workers; i++) {
		workers[i] = fork_helper();
		CHECK(workers[i] >= 0);
		if (workers[i])
			continue;
		signal(SIGPIPE, SIG_IGN);
		self.id = i;
		self.slot = &slots[i];
		self.seed = (uint64_t)parent << 32 | (i + 1);
		work();
	}
}

static struct slot sum(void)
{
	struct slot total = { 0 };
	unsigned int i;

	for (i = 0; i <= nr_workers; i++) {
		total.rounds += __atomic_load_n(&slots[i].rounds, __ATOMIC_RELAXED);
		total.checks += __atomic_load_n(&slots[i].checks, __ATOMIC_RELAXED);
		total.errors += __atomic_load_n(&slots[i].errors, __ATOMIC_RELAXED);
	}
	return total;
}

static const char *first_error(void)
{
	/* Pairs with the release in report(). */
	if (__atomic_load_n(&self.shared->error_ready, __ATOMIC_ACQUIRE))
		return self.shared->error;
	return "";
}

static unsigned int running(void)
{
	unsigned int count = 0;
	unsigned int i;

	for (i = 0; i < nr_workers; i++)
		count += workers[i] > 0;
	return count;
}

static void write_state(uint64_t start)
{
	uint64_t packets = count_packets();
	struct slot total = sum();
	char next[PATH_MAX];
	FILE *file;

	snprintf(next, sizeof(next), "%s.next", options->state);
	file = fopen(next, "w");
	if (!CHECK(file))
		return;
	fprintf(file, "seconds=%.2f\nrounds=%llu\nchecks=%llu\nerrors=%llu\n"
		"workers=%u\npackets=%llu\nfirst_error=%s\n",
		(now_ns() - start) / 1e9, (unsigned long long)total.rounds,
		(unsigned long long)total.checks,
		(unsigned long long)total.errors, running(),
		(unsigned long long)packets, first_error());
	CHECK(!fclose(file));
	CHECK(!rename(next, options->state));
}

static void reap(void)
{
	unsigned int i;
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (i = 0; i < nr_workers; i++) {
			if (workers[i] != pid)
				continue;
			workers[i] = 0;
			if (status)
				report("worker %u ended with status 0x%x in %s",
				       i, status, families[slots[i].family].name);
		}
	}
}

/* A worker that stands still is an error, told once. */
static void watch_progress(uint64_t now)
{
	static uint64_t seen[MAX_WORKERS], since[MAX_WORKERS];
	static bool told[MAX_WORKERS];
	unsigned int i;

	for (i = 0; i < nr_workers; i++) {
		uint64_t rounds = __atomic_load_n(&slots[i].rounds, __ATOMIC_RELAXED);

		if (rounds != seen[i] || !since[i]) {
			seen[i] = rounds;
			since[i] = now;
		} else if (workers[i] && !told[i] &&
			   now - since[i] > STUCK_SECONDS * 1000000000ULL) {
			told[i] = true;
			report("worker %u is stuck in %s", i,
			       families[slots[i].family].name);
		}
	}
}

/* Until the time is over, a signal comes, or no worker is left. */
static void supervise(const sigset_t *signals, uint64_t start)
{
	const struct timespec period = { 0, STATE_PERIOD_NS };
	uint64_t end = now_ns() + options->seconds * 1000000000ULL;
	int signal;

	while (running() && (!options->seconds || now_ns() < end)) {
		signal = sigtimedwait(signals, NULL, &period);
		if (signal == SIGTERM || signal == SIGINT)
			break;
		reap();
		watch_progress(now_ns());
		write_state(start);
	}
}

static void stop_workers(void)
{
	const struct timespec moment = { 0, 20000000 };
	uint64_t deadline = now_ns() + PATIENCE_MS * 1000000ULL;
	unsigned int i;

	__atomic_store_n(&self.shared->stop, 1, __ATOMIC_RELAXED);
	for (reap(); running() && now_ns() < deadline; reap())
		nanosleep(&moment, NULL);
	for (i = 0; i < nr_workers; i++) {
		if (!workers[i])
			continue;
		report("worker %u did not end: it hangs in %s", i,
		       families[slots[i].family].name);
		kill(workers[i], SIGKILL);
		waitpid(workers[i], NULL, 0);
		workers[i] = 0;
	}
	/* Their helpers, killed with them, are ours now. */
	while (waitpid(-1, NULL, 0) > 0)
		;
}

static bool share_memory(void)
{
	size_t size = sizeof(struct shared) + (nr_workers + 2) * sizeof(*slots);
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return false;
	slots = memory;
	self.shared = (struct shared *)(slots + nr_workers + 1);
	self.slot = &slots[nr_workers];
	self.id = nr_workers;
	return true;
}

unsigned long long run_workers(const struct options *given)
{
	uint64_t start = now_ns();
	struct slot total;
	sigset_t signals;

	options = given;
	nr_workers = options->cpus * WORKERS_PER_CPU;
	if (!share_memory()) {
		perror("optload: no memory to share");
		return 1;
	}
	hold_open();
	CHECK(!prctl(PR_SET_CHILD_SUBREAPER, 1));
	/* The workers inherit the mask: only the main process is asked to end. */
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);

	start_workers();
	/* The state must stay fresh however busy the CPUs are. */
	CHECK(!setpriority(PRIO_PROCESS, 0, -10));
	supervise(&signals, start);
	stop_workers();
	write_state(start);

	total = sum();
	printf("optload: %llu rounds, %llu checks, %llu errors%s%s\n",
	       (unsigned long long)total.rounds,
	       (unsigned long long)total.checks,
	       (unsigned long long)total.errors, total.errors ? ": " : "",
	       first_error());
	return total.errors;
}
