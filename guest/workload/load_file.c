// SPDX-License-Identifier: GPL-2.0-or-later
/* Families: file, stat, proc, splice, dev. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "optload.h"

#define FILE_SIZE	16384
#define NR_ENTRIES	12

static char sent[FILE_SIZE];
static char got[FILE_SIZE];
static int held = -1;		/* an open file with nothing in it */

/* file */

bool setup_file(void)
{
	held = open(own_path("held"), O_RDWR | O_CREAT | O_TRUNC, 0600);
	return CHECK(held >= 0);
}

static void rewrite(int fd, size_t size, uint32_t key)
{
	fill(sent, size, key);
	CHECK(pwrite(fd, sent, size, 0) == (ssize_t)size);
	CHECK(lseek(fd, 0, SEEK_SET) == 0);
	CHECK(read(fd, got, size) == (ssize_t)size);
	CHECK(filled(got, size, key));
}

static void whole_life(void)
{
	size_t size = random_size(FILE_SIZE);
	uint32_t key = random32();
	struct stat info;
	char moved[512];
	int fd;

	fd = open(own_path("file"), O_RDWR | O_CREAT | O_EXCL, 0600);
	if (!CHECK(fd >= 0))
		return;
	rewrite(fd, size, key);
	CHECK(!ftruncate(fd, size / 2));
	CHECK(!fstat(fd, &info) && info.st_size == (off_t)(size / 2));
	CHECK(pread(fd, got, FILE_SIZE, 0) == (ssize_t)(size / 2));
	CHECK(!memcmp(got, sent, size / 2));
	CHECK(!close(fd));

	strcpy(moved, own_path("moved"));
	CHECK(!rename(own_path("file"), moved));
	CHECK(access(own_path("file"), F_OK) == -1 && errno == ENOENT);
	CHECK(!stat(moved, &info) && info.st_size == (off_t)(size / 2));
	CHECK(!unlink(moved));
	CHECK(open(moved, O_RDONLY) == -1 && errno == ENOENT);
}

void turn_file(void)
{
	int i;

	for (i = 0; i < 8; i++)
		rewrite(held, random_size(FILE_SIZE), random32());
	whole_life();
}

/* stat: names, in a directory of which all is known */

static const char *entry_path(unsigned int i)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/entry%u", own_path("dir"), i);
	return path;
}

bool setup_stat(void)
{
	unsigned int i;

	if (!CHECK(!mkdir(own_path("dir"), 0700)))
		return false;
	for (i = 0; i < NR_ENTRIES; i++) {
		int fd = open(entry_path(i), O_RDWR | O_CREAT | O_EXCL, 0600);

		if (!CHECK(fd >= 0) || !CHECK(write(fd, sent, i) == i) ||
		    !CHECK(!close(fd)))
			return false;
	}
	return CHECK(!symlink("entry3", entry_path(NR_ENTRIES)));
}

static void list(void)
{
	unsigned int entries = 0;
	struct dirent *entry;
	DIR *dir = opendir(own_path("dir"));

	if (!CHECK(dir))
		return;
	while ((entry = readdir(dir)))
		entries += !strncmp(entry->d_name, "entry", 5);
	CHECK(entries == NR_ENTRIES + 1);
	CHECK(!closedir(dir));
}

void turn_stat(void)
{
	unsigned int i;

	for (i = 0; i < NR_ENTRIES; i++) {
		struct stat info;
		int fd;

		CHECK(!stat(entry_path(i), &info) && info.st_size == i);
		CHECK(!access(entry_path(i), R_OK));
		fd = open(entry_path(i), O_RDONLY);
		CHECK(fd >= 0 && !fstat(fd, &info) && info.st_size == i);
		CHECK(read(fd, got, FILE_SIZE) == i);
		CHECK(!close(fd));
	}
	CHECK(readlink(entry_path(NR_ENTRIES), got, FILE_SIZE) == 6);
	CHECK(!memcmp(got, "entry3", 6));
	list();
}

/* proc: a few files, so that seq_file's sites keep few targets */

static ssize_t slurp(const char *path)
{
	int fd = open(path, O_RDONLY);
	ssize_t size;

	if (!CHECK(fd >= 0))
		return -1;
	size = read(fd, got, FILE_SIZE - 1);
	CHECK(size > 0);
	CHECK(!close(fd));
	got[size > 0 ? size : 0] = '\0';
	return size;
}

void turn_proc(void)
{
	char target[12] = "";
	double up = 0;

	if (slurp("/proc/self/stat") > 0)
		CHECK(atoi(got) == getpid());
	if (slurp("/proc/uptime") > 0)
		CHECK(sscanf(got, "%lf", &up) == 1 &&
		      up <= now_ns() / 1e9 + 1 && up > 0);
	if (slurp("/sys/devices/system/cpu/present") > 0)
		CHECK(got[0] == '0');
	CHECK(readlink("/proc/self", target, sizeof(target) - 1) > 0);
	CHECK(atoi(target) == getpid());
}

/* splice: file to pipe to file, and file to socket, without a copy of ours */

static int source = -1;
static int sink = -1;
static int tube[2];
static int wire[2];

bool setup_splice(void)
{
	source = open(own_path("source"), O_RDWR | O_CREAT | O_TRUNC, 0600);
	sink = open(own_path("sink"), O_RDWR | O_CREAT | O_TRUNC, 0600);
	return CHECK(source >= 0) && CHECK(sink >= 0) && CHECK(!pipe(tube)) &&
	       CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, wire));
}

void turn_splice(void)
{
	size_t size = random_size(FILE_SIZE);
	uint32_t key = random32();
	loff_t from = 0, to = 0;
	off_t start = 0;

	rewrite(source, size, key);
	CHECK(splice(source, &from, tube[1], NULL, size, 0) == (ssize_t)size);
	CHECK(splice(tube[0], NULL, sink, &to, size, 0) == (ssize_t)size);
	CHECK(pread(sink, got, size, 0) == (ssize_t)size);
	CHECK(filled(got, size, key));

	memset(got, 0, size);
	CHECK(sendfile(wire[0], source, &start, size) == (ssize_t)size);
	CHECK(recv(wire[1], got, size, MSG_WAITALL) == (ssize_t)size);
	CHECK(filled(got, size, key));
}

/* dev */

static int zero = -1;
static int urandom = -1;

bool setup_dev(void)
{
	zero = open("/dev/zero", O_RDWR);
	urandom = open("/dev/urandom", O_RDONLY);
	return CHECK(zero >= 0) && CHECK(urandom >= 0);
}

void turn_dev(void)
{
	static const char nothing[4096];
	char first[32], second[32];

	memset(got, 1, sizeof(nothing));
	CHECK(read(zero, got, sizeof(nothing)) == sizeof(nothing));
	CHECK(!memcmp(got, nothing, sizeof(nothing)));
	CHECK(write(zero, got, sizeof(nothing)) == sizeof(nothing));
	CHECK(read(urandom, first, sizeof(first)) == sizeof(first));
	CHECK(getrandom(second, sizeof(second), 0) == sizeof(second));
	CHECK(memcmp(first, second, sizeof(first)));
}
