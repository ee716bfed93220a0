// SPDX-License-Identifier: GPL-2.0-or-later
/* Families: syscall, fork, memory. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "optload.h"

#define PAGE	4096
#define PAGES	16

/* syscall: real ones, past the vDSO */

void turn_syscall(void)
{
	struct timespec earlier = { 0 }, later = { 0 };
	pid_t parent = getppid();
	struct utsname name;
	int i;

	for (i = 0; i < 16; i++) {
		CHECK(syscall(SYS_getpid) == getpid());
		CHECK(syscall(SYS_getppid) == parent);
		CHECK(!syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &earlier));
		CHECK(!syscall(SYS_sched_yield));
		CHECK(!syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &later));
		CHECK(later.tv_sec > earlier.tv_sec ||
		      (later.tv_sec == earlier.tv_sec &&
		       later.tv_nsec >= earlier.tv_nsec));
	}
	CHECK(!syscall(SYS_uname, &name) && !strcmp(name.sysname, "Linux"));
	CHECK(syscall(SYS_close, -1) == -1 && errno == EBADF);
}

/* fork: a child that leaves with a code, by itself or through exec */

void turn_fork(void)
{
	int code = random32() % 200;
	bool execs = random32() % 2;
	char number[12];
	int status = 0;
	pid_t pid;

	snprintf(number, sizeof(number), "%d", code);
	pid = fork();
	if (!pid) {
		if (execs)
			execl("/proc/self/exe", "optload", EXIT_CODE_OPTION,
			      number, NULL);
		_exit(execs ? 255 : code);
	}
	if (!CHECK(pid > 0))
		return;
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == code);
}

/* memory: faults on anonymous memory and on a file */

static int backing = -1;

bool setup_memory(void)
{
	backing = open(own_path("mapped"), O_RDWR | O_CREAT | O_TRUNC, 0600);
	return CHECK(backing >= 0) && CHECK(!ftruncate(backing, PAGE * PAGES));
}

static void anonymous(void)
{
	char *area, *moved;
	int i;

	area = mmap(NULL, PAGE * PAGES, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!CHECK(area != MAP_FAILED))
		return;
	for (i = 0; i < PAGES; i++) {
		CHECK(area[i * PAGE] == 0);
		area[i * PAGE] = i + 1;
	}
	CHECK(!mprotect(area, PAGE * PAGES, PROT_READ));
	CHECK(area[5 * PAGE] == 6);
	CHECK(!mprotect(area, PAGE * PAGES, PROT_READ | PROT_WRITE));
	CHECK(!madvise(area, PAGE * PAGES / 2, MADV_DONTNEED));
	CHECK(area[5 * PAGE] == 0 && area[12 * PAGE] == 13);
	moved = mremap(area, PAGE * PAGES, PAGE * PAGES * 2, MREMAP_MAYMOVE);
	if (!CHECK(moved != MAP_FAILED))
		return;
	CHECK(moved[12 * PAGE] == 13 && moved[20 * PAGE] == 0);
	CHECK(!munmap(moved, PAGE * PAGES * 2));
}

static void mapped(void)
{
	uint32_t key = random32();
	char page[PAGE];
	char *area;
	int i;

	area = mmap(NULL, PAGE * PAGES, PROT_READ | PROT_WRITE, MAP_SHARED,
		    backing, 0);
	if (!CHECK(area != MAP_FAILED))
		return;
	for (i = 0; i < PAGES; i += 4)
		fill(area + i * PAGE, PAGE, key + i);
	CHECK(pread(backing, page, PAGE, PAGE * 4) == PAGE);
	CHECK(filled(page, PAGE, key + 4));
	CHECK(pwrite(backing, page, PAGE, PAGE * 5) == PAGE);
	CHECK(filled(area + PAGE * 5, PAGE, key + 4));
	CHECK(!munmap(area, PAGE * PAGES));
}

void turn_memory(void)
{
	anonymous();
	mapped();
}
