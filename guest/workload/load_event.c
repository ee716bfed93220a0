// SPDX-License-Identifier: GPL-2.0-or-later
/* Families: event, timer, signal. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "optload.h"

/* event: an eventfd and a pipe, watched by epoll, poll and select */

static int counter;
static int ends[2];
static int poller;

bool setup_event(void)
{
	struct epoll_event on_counter = { .events = EPOLLIN, .data.u32 = 1 };
	struct epoll_event on_pipe = { .events = EPOLLIN, .data.u32 = 2 };

	counter = eventfd(0, EFD_NONBLOCK);
	poller = epoll_create1(0);
	return CHECK(counter >= 0) && CHECK(poller >= 0) && CHECK(!pipe(ends)) &&
	       CHECK(!epoll_ctl(poller, EPOLL_CTL_ADD, counter, &on_counter)) &&
	       CHECK(!epoll_ctl(poller, EPOLL_CTL_ADD, ends[0], &on_pipe));
}

static void by_epoll(void)
{
	struct epoll_event ready[3];
	uint64_t value = random_size(1000), back = 0;

	CHECK(epoll_wait(poller, ready, 3, 0) == 0);
	CHECK(write(counter, &value, sizeof(value)) == sizeof(value));
	CHECK(epoll_wait(poller, ready, 3, -1) == 1 && ready[0].data.u32 == 1);
	CHECK(read(counter, &back, sizeof(back)) == sizeof(back) && back == value);
	CHECK(read(counter, &back, sizeof(back)) == -1 && errno == EAGAIN);
}

static void by_poll(void)
{
	struct pollfd watched[2] = {
		{ .fd = counter, .events = POLLIN },
		{ .fd = ends[0], .events = POLLIN },
	};
	uint32_t value = random32(), back = ~value;

	CHECK(poll(watched, 2, 0) == 0);
	CHECK(write(ends[1], &value, sizeof(value)) == sizeof(value));
	CHECK(poll(watched, 2, -1) == 1 && watched[1].revents == POLLIN);
	CHECK(read(ends[0], &back, sizeof(back)) == sizeof(back) && back == value);
}

static void by_select(void)
{
	struct timeval none = { 0, 0 };
	char byte = 'x';
	fd_set watched;

	FD_ZERO(&watched);
	FD_SET(counter, &watched);
	FD_SET(ends[0], &watched);
	CHECK(write(ends[1], &byte, 1) == 1);
	CHECK(select(ends[0] + counter + 1, &watched, NULL, NULL, &none) == 1);
	CHECK(FD_ISSET(ends[0], &watched) && !FD_ISSET(counter, &watched));
	CHECK(read(ends[0], &byte, 1) == 1 && byte == 'x');
}

void turn_event(void)
{
	int i;

	for (i = 0; i < 4; i++) {
		by_epoll();
		by_poll();
		by_select();
	}
}

/* timer: each kind once, a fraction of a millisecond long */

static int timerfd;
static timer_t timer;
static sigset_t timer_set;

bool setup_timer(void)
{
	struct sigevent event = {
		.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1,
	};

	sigemptyset(&timer_set);
	sigaddset(&timer_set, SIGRTMIN + 1);
	timerfd = timerfd_create(CLOCK_MONOTONIC, 0);
	return CHECK(timerfd >= 0) &&
	       CHECK(!sigprocmask(SIG_BLOCK, &timer_set, NULL)) &&
	       CHECK(!timer_create(CLOCK_MONOTONIC, &event, &timer));
}

void turn_timer(void)
{
	const struct timespec patience = { PATIENCE_MS / 1000, 0 };
	uint64_t length = 50000 + random32() % 200000;
	const struct timespec nap = { 0, length };
	const struct itimerspec shot = { .it_value = nap };
	uint64_t expired = 0, start;
	struct timespec until;
	siginfo_t info;

	start = now_ns();
	CHECK(!nanosleep(&nap, NULL));
	CHECK(now_ns() - start >= length);

	start = now_ns();
	CHECK(!timerfd_settime(timerfd, 0, &shot, NULL));
	CHECK(read(timerfd, &expired, sizeof(expired)) == sizeof(expired));
	CHECK(expired == 1 && now_ns() - start >= length);

	start = now_ns() + length;
	until.tv_sec = start / 1000000000;
	until.tv_nsec = start % 1000000000;
	CHECK(!clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL));
	CHECK(now_ns() >= start);

	start = now_ns();
	CHECK(!timer_settime(timer, 0, &shot, NULL));
	CHECK(sigtimedwait(&timer_set, &info, &patience) == SIGRTMIN + 1);
	CHECK(info.si_code == SI_TIMER && now_ns() - start >= length);
}

/* signal: handled, queued with a value, and waited for */

static uint32_t handled;
static int handled_value;
static sigset_t waited_set;

static void on_signal(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	handled++;
	handled_value = info->si_value.sival_int;
}

bool setup_signal(void)
{
	struct sigaction action = {
		.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO,
	};

	sigemptyset(&waited_set);
	sigaddset(&waited_set, SIGUSR2);
	return CHECK(!sigprocmask(SIG_BLOCK, &waited_set, NULL)) &&
	       CHECK(!sigaction(SIGUSR1, &action, NULL)) &&
	       CHECK(!sigaction(SIGRTMIN, &action, NULL));
}

void turn_signal(void)
{
	const struct timespec none = { 0, 0 };
	uint32_t before = handled;
	union sigval value;
	sigset_t pending;
	siginfo_t info;
	int i;

	for (i = 0; i < 4; i++) {
		CHECK(!kill(getpid(), SIGUSR1));
		CHECK(handled == ++before);
		value.sival_int = random32();
		CHECK(!sigqueue(getpid(), SIGRTMIN, value));
		CHECK(handled == ++before && handled_value == value.sival_int);
	}
	CHECK(sigtimedwait(&waited_set, NULL, &none) == -1 && errno == EAGAIN);
	CHECK(!kill(getpid(), SIGUSR2));
	CHECK(!sigpending(&pending) && sigismember(&pending, SIGUSR2) == 1);
	CHECK(sigwaitinfo(&waited_set, &info) == SIGUSR2 &&
	      info.si_pid == getpid());
}
