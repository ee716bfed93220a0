// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Family: fuse.  A helper process serves a file system over /dev/fuse, and the
 * worker uses it.  There is one directory with a few files in the helper's
 * memory.  Nothing may be cached but what was read, and of every other file
 * not even that: each call becomes a message.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "optload.h"

#define FILES		4
#define MAX_SIZE	32768
#define MAX_WRITE	MAX_SIZE
/* What the kernel asks a server to have room for, and the message's head. */
#define MESSAGE		(MAX_WRITE + 8192)

/* The server's side.  Node 1 is the directory, node 2 + i is file i. */
#define FIRST_FILE	2

static struct {
	bool exists;
	size_t size;
	char data[MAX_SIZE];
} files[FILES];

static int device;

static void answer(const struct fuse_in_header *asked, int error,
		   const void *data, size_t size)
{
	static char message[MESSAGE];
	struct fuse_out_header head = {
		.len = sizeof(head) + size, .error = error, .unique = asked->unique,
	};

	memcpy(message, &head, sizeof(head));
	if (size)
		memcpy(message + sizeof(head), data, size);
	/* A process that was killed while it waited takes no answer. */
	CHECK(write(device, message, head.len) == (ssize_t)head.len || errno == ENOENT);
}

static struct fuse_attr attributes(uint64_t node)
{
	struct fuse_attr attr = { .ino = node, .nlink = 1, .mode = S_IFDIR | 0700 };

	if (node >= FIRST_FILE) {
		attr.mode = S_IFREG | 0600;
		attr.size = files[node - FIRST_FILE].size;
		attr.blksize = 4096;
	}
	return attr;
}

static struct fuse_entry_out entry(uint64_t node)
{
	return (struct fuse_entry_out){ .nodeid = node, .attr = attributes(node) };
}

/* A file's name is its number. */
static uint64_t node_of(const char *name)
{
	return name[0] >= '0' && name[0] < '0' + FILES && !name[1] ?
		FIRST_FILE + name[0] - '0' : 0;
}

static bool exists(uint64_t node)
{
	return node && files[node - FIRST_FILE].exists;
}

static struct fuse_open_out opened(uint64_t node)
{
	return (struct fuse_open_out){ .open_flags = node % 2 ? FOPEN_DIRECT_IO : 0 };
}

static void serve_init(const struct fuse_in_header *asked,
		       const struct fuse_init_in *in)
{
	const struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = in->minor < FUSE_KERNEL_MINOR_VERSION ?
			 in->minor : FUSE_KERNEL_MINOR_VERSION,
		.max_readahead = in->max_readahead,
		.flags = in->flags & FUSE_BIG_WRITES,
		.max_write = MAX_WRITE,
	};

	answer(asked, 0, &out, sizeof(out));
}

static void serve_create(const struct fuse_in_header *asked, const char *name)
{
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} out;
	uint64_t node = node_of(name);

	if (!node) {
		answer(asked, -EPERM, NULL, 0);
		return;
	}
	files[node - FIRST_FILE].exists = true;
	files[node - FIRST_FILE].size = 0;
	out.entry = entry(node);
	out.open = opened(node);
	answer(asked, 0, &out, sizeof(out));
}

static void serve_setattr(const struct fuse_in_header *asked,
			  const struct fuse_setattr_in *in)
{
	struct fuse_attr_out out = { 0 };
	size_t old = files[asked->nodeid - FIRST_FILE].size;

	if (in->valid & FATTR_SIZE && in->size <= MAX_SIZE) {
		if (in->size > old)
			memset(files[asked->nodeid - FIRST_FILE].data + old, 0,
			       in->size - old);
		files[asked->nodeid - FIRST_FILE].size = in->size;
	}
	out.attr = attributes(asked->nodeid);
	answer(asked, 0, &out, sizeof(out));
}

static void serve_read(const struct fuse_in_header *asked,
		       const struct fuse_read_in *in)
{
	size_t size = files[asked->nodeid - FIRST_FILE].size;
	size_t offset = in->offset < size ? in->offset : size;

	size -= offset;
	answer(asked, 0, files[asked->nodeid - FIRST_FILE].data + offset,
	       size < in->size ? size : in->size);
}

static void serve_write(const struct fuse_in_header *asked,
			const struct fuse_write_in *in)
{
	const struct fuse_write_out out = { .size = in->size };
	uint64_t end = in->offset + in->size;

	if (in->offset > MAX_SIZE || end > MAX_SIZE) {
		answer(asked, -EFBIG, NULL, 0);
		return;
	}
	memcpy(files[asked->nodeid - FIRST_FILE].data + in->offset, in + 1, in->size);
	if (end > files[asked->nodeid - FIRST_FILE].size)
		files[asked->nodeid - FIRST_FILE].size = end;
	answer(asked, 0, &out, sizeof(out));
}

/* All names fit one answer; the offset of each is where the next one begins. */
static void serve_readdir(const struct fuse_in_header *asked,
			  const struct fuse_read_in *in)
{
	char out[FILES * FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + 1)] = { 0 };
	size_t size = 0;
	unsigned int i;

	for (i = in->offset; i < FILES; i++) {
		struct fuse_dirent *name = (struct fuse_dirent *)(out + size);

		if (!files[i].exists)
			continue;
		name->ino = FIRST_FILE + i;
		name->off = i + 1;
		name->namelen = 1;
		name->type = S_IFREG >> 12;
		name->name[0] = '0' + i;
		size += FUSE_DIRENT_SIZE(name);
	}
	answer(asked, 0, out, size);
}

static void serve_one(const struct fuse_in_header *asked, const void *in)
{
	struct fuse_entry_out found;
	struct fuse_attr_out attr = { 0 };
	struct fuse_open_out open_out = { 0 };

	switch (asked->opcode) {
	case FUSE_INIT:
		serve_init(asked, in);
		break;
	case FUSE_LOOKUP:
		found = entry(exists(node_of(in)) ? node_of(in) : FUSE_ROOT_ID);
		answer(asked, exists(node_of(in)) ? 0 : -ENOENT, &found,
		       exists(node_of(in)) ? sizeof(found) : 0);
		break;
	case FUSE_GETATTR:
		attr.attr = attributes(asked->nodeid);
		answer(asked, 0, &attr, sizeof(attr));
		break;
	case FUSE_SETATTR:
		serve_setattr(asked, in);
		break;
	case FUSE_CREATE:
		serve_create(asked, (const char *)in + sizeof(struct fuse_create_in));
		break;
	case FUSE_UNLINK:
		files[node_of(in) - FIRST_FILE].exists = false;
		answer(asked, 0, NULL, 0);
		break;
	case FUSE_OPEN:
		open_out = opened(asked->nodeid);
		answer(asked, 0, &open_out, sizeof(open_out));
		break;
	case FUSE_OPENDIR:
		answer(asked, 0, &open_out, sizeof(open_out));
		break;
	case FUSE_READ:
		serve_read(asked, in);
		break;
	case FUSE_WRITE:
		serve_write(asked, in);
		break;
	case FUSE_READDIR:
		serve_readdir(asked, in);
		break;
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		answer(asked, 0, NULL, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	default:
		answer(asked, -ENOSYS, NULL, 0);
	}
}

/* Until the worker is gone, or its mount.  It polls, as one that serves several mounts does. */
static void serve(void)
{
	static _Alignas(8) char message[MESSAGE];
	const struct fuse_in_header *asked = (void *)message;
	struct pollfd ready = { .fd = device, .events = POLLIN };

	for (;;) {
		ssize_t got;

		CHECK(poll(&ready, 1, -1) == 1 || errno == EINTR);
		got = read(device, message, sizeof(message));
		if (got >= (ssize_t)sizeof(*asked))
			serve_one(asked, asked + 1);
		else if (got >= 0 || errno == ENODEV)
			_exit(0);
		else if (!CHECK(errno == EINTR || errno == ENOENT))
			_exit(1);
	}
}

/* The worker's side. */
static char mountpoint[PATH_MAX];
static bool made[FILES];

bool setup_fuse(void)
{
	char options[80];
	pid_t server;

	snprintf(mountpoint, sizeof(mountpoint), "%s", own_path("fuse"));
	device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0",
		 device);
	if (!CHECK(device >= 0) || !own_mounts() || !CHECK(!mkdir(mountpoint, 0700)) ||
	    !CHECK(!mount("optload", mountpoint, "fuse", 0, options)))
		return false;
	server = fork_helper();
	if (!server)
		serve();
	/* The server's is the only one: its end must be the connection's. */
	close(device);
	return CHECK(server > 0);
}

static const char *file_path(unsigned int file)
{
	static char path[PATH_MAX + 16];

	snprintf(path, sizeof(path), "%s/%u", mountpoint, file);
	return path;
}

static size_t current_size(int fd)
{
	struct stat status = { 0 };

	CHECK(!fstat(fd, &status));
	return status.st_size;
}

static void use_file(int fd)
{
	static char data[MAX_SIZE];
	size_t size = random_size(MAX_SIZE);
	size_t less = random_size(size);
	uint32_t key = random32();

	fill(data, size, key);
	CHECK(!ftruncate(fd, 0));
	CHECK(pwrite(fd, data, size, 0) == (ssize_t)size);
	CHECK(current_size(fd) == size);
	memset(data, 0, size);
	CHECK(pread(fd, data, sizeof(data), 0) == (ssize_t)size);
	CHECK(filled(data, size, key));
	CHECK(!ftruncate(fd, less));
	CHECK(current_size(fd) == less);
	CHECK(pread(fd, data, sizeof(data), 0) == (ssize_t)less);
}

void turn_fuse(void)
{
	unsigned int file = random32() % FILES;
	struct stat status;
	int fd, names = 0;
	unsigned int i;

	CHECK(!stat(file_path(file), &status) == made[file]);
	fd = open(file_path(file), O_RDWR | O_CREAT, 0600);
	if (!CHECK(fd >= 0))
		return;
	made[file] = true;
	use_file(fd);
	CHECK(!close(fd));
	if (random32() % 4 == 0) {
		CHECK(!unlink(file_path(file)));
		made[file] = false;
	}
	for (i = 0; i < FILES; i++)
		names += made[i];
	CHECK(count_names(mountpoint) == names);
}
