// SPDX-License-Identifier: GPL-2.0-or-later
/* Families: pipe, echo, unix, futex. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "optload.h"

#define MESSAGE		4096

static char sent[MESSAGE];
static char got[MESSAGE];

/* pipe: no task sleeps, because both ends are ours */

static int own_pipe[2];

bool setup_pipe(void)
{
	return CHECK(!pipe(own_pipe));
}

void turn_pipe(void)
{
	int i;

	for (i = 0; i < 16; i++) {
		size_t size = random_size(MESSAGE);
		uint32_t key = random32();

		fill(sent, size, key);
		CHECK(write(own_pipe[1], sent, size) == (ssize_t)size);
		CHECK(read(own_pipe[0], got, MESSAGE) == (ssize_t)size);
		CHECK(filled(got, size, key));
	}
}

/* echo: through a pipe to the partner and back, so that both sleep */

static int to_partner[2];
static int from_partner[2];

bool setup_echo(void)
{
	if (!CHECK(!pipe(to_partner)) || !CHECK(!pipe(from_partner)))
		return false;
	partner_link(to_partner[0], from_partner[1]);
	return true;
}

void turn_echo(void)
{
	int i;

	for (i = 0; i < 8; i++) {
		size_t size = random_size(MESSAGE);
		uint32_t key = random32();

		fill(sent, size, key);
		CHECK(write(to_partner[1], sent, size) == (ssize_t)size);
		CHECK(read_all(from_partner[0], got, size));
		CHECK(filled(got, size, key));
	}
}

/* unix: stream and datagram pairs, and a descriptor that travels */

static int stream[2];
static int datagram[2];

bool setup_unix(void)
{
	return CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, stream)) &&
	       CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, datagram));
}

static void send_descriptor(int fd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec part = { sent, 1 };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	struct stat before, after;
	int copy;

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(int));
	CHECK(sendmsg(stream[0], &message, 0) == 1);
	memset(&control, 0, sizeof(control));
	message.msg_controllen = sizeof(control);
	if (!CHECK(recvmsg(stream[1], &message, 0) == 1))
		return;
	header = CMSG_FIRSTHDR(&message);
	if (!CHECK(header && header->cmsg_type == SCM_RIGHTS))
		return;
	memcpy(&copy, CMSG_DATA(header), sizeof(int));
	CHECK(!fstat(fd, &before));
	CHECK(!fstat(copy, &after));
	CHECK(copy != fd && before.st_ino == after.st_ino);
	CHECK(!close(copy));
}

void turn_unix(void)
{
	int i;

	for (i = 0; i < 12; i++) {
		int *pair = i % 2 ? datagram : stream;
		size_t size = random_size(MESSAGE);
		uint32_t key = random32();

		fill(sent, size, key);
		CHECK(send(pair[0], sent, size, 0) == (ssize_t)size);
		CHECK(recv(pair[1], got, MESSAGE, 0) == (ssize_t)size);
		CHECK(filled(got, size, key));
	}
	if (random32() % 4 == 0)
		send_descriptor(stream[0]);
}

/* futex: a word that two processes hand to each other */

static uint32_t *word;

static long futex(uint32_t *address, int op, uint32_t value,
		  const struct timespec *timeout)
{
	return syscall(SYS_futex, address, op, value, timeout, NULL, 0);
}

/* Waits until the word is no longer @old. */
static bool word_left(uint32_t old)
{
	const struct timespec patience = { PATIENCE_MS / 1000, 0 };

	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == old) {
		if (futex(word, FUTEX_WAIT, old, &patience) &&
		    errno != EAGAIN && errno != EINTR)
			return false;
	}
	return true;
}

static void word_becomes(uint32_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
	CHECK(futex(word, FUTEX_WAKE, 1, NULL) >= 0);
}

/* The other process answers each odd number with the next even one. */
static void answer(void)
{
	uint32_t now = 0;

	for (;;) {
		while (!word_left(now))
			;
		now = __atomic_load_n(word, __ATOMIC_ACQUIRE) + 1;
		word_becomes(now);
	}
}

bool setup_futex(void)
{
	pid_t pid;

	word = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!CHECK(word != MAP_FAILED))
		return false;
	pid = fork_helper();
	if (!pid)
		answer();
	return CHECK(pid > 0);
}

void turn_futex(void)
{
	const struct timespec moment = { 0, 20000 };
	uint32_t mine;
	int i;

	for (i = 0; i < 4; i++) {
		mine = __atomic_load_n(word, __ATOMIC_ACQUIRE) + 1;
		word_becomes(mine);
		CHECK(word_left(mine));
		CHECK(__atomic_load_n(word, __ATOMIC_ACQUIRE) == mine + 1);
	}
	mine = random32();
	CHECK(futex(&mine, FUTEX_WAIT_PRIVATE, mine + 1, NULL) == -1 &&
	      errno == EAGAIN);
	CHECK(futex(&mine, FUTEX_WAKE_PRIVATE, 1, NULL) == 0);
	if (random32() % 4 == 0)
		CHECK(futex(&mine, FUTEX_WAIT_PRIVATE, mine, &moment) == -1 &&
		      errno == ETIMEDOUT);
}
