// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Family: overlay.  Both layers are on a tmpfs.  Each turn takes one of the
 * lower layer's files: reads it, changes it (which copies it up), renames it
 * and removes every other one.  When all have had their turn, everything is
 * unmounted and made afresh.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "optload.h"

#define FILES		8
#define MAX_SIZE	12000
#define MAX_PATCH	500

static char base[PATH_MAX / 4];
static unsigned int generation;
static unsigned int next_file = FILES;
static int names;		/* in the merged directory */

static uint64_t key_of(unsigned int file)
{
	return (uint64_t)generation * FILES + file + 1;
}

static size_t size_of(unsigned int file)
{
	return key_of(file) * 0x9e3779b97f4a7c15 % MAX_SIZE + 1;
}

static const char *path_in(const char *layer, const char *prefix, unsigned int file)
{
	static char paths[2][PATH_MAX];
	static unsigned int turn;
	char *path = paths[turn++ % 2];

	snprintf(path, PATH_MAX, "%s/%s/%s%u", base, layer, prefix, file);
	return path;
}

static bool is_gone(const char *path)
{
	struct stat status;

	return stat(path, &status) == -1 && errno == ENOENT;
}

/* Whether the file has @size bytes, which are @expected. */
static bool holds(const char *path, const char *expected, size_t size)
{
	static char got[MAX_SIZE + 1];
	int fd = open(path, O_RDONLY);
	bool same = fd >= 0 && read(fd, got, sizeof(got)) == (ssize_t)size &&
		    !memcmp(got, expected, size);

	if (fd >= 0)
		close(fd);
	return same;
}

static bool make_directory(const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", base, name);
	return CHECK(!mkdir(path, 0755));
}

static bool make_lower_file(unsigned int file)
{
	char data[MAX_SIZE];
	size_t size = size_of(file);
	int fd = open(path_in("lower", "f", file), O_WRONLY | O_CREAT | O_EXCL, 0600);
	bool made;

	if (!CHECK(fd >= 0))
		return false;
	fill(data, size, key_of(file));
	made = CHECK(write_all(fd, data, size));
	return CHECK(!close(fd)) && made;
}

static bool mount_merged(void)
{
	char path[PATH_MAX], layers[PATH_MAX];

	snprintf(path, sizeof(path), "%s/merged", base);
	snprintf(layers, sizeof(layers), "lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work",
		 base, base, base);
	return CHECK(!mount("overlay", path, "overlay", 0, layers));
}

static bool make_layers(void)
{
	unsigned int i;

	generation++;
	names = FILES;
	next_file = 0;
	if (!CHECK(!mount("tmpfs", base, "tmpfs", 0, NULL)) ||
	    !make_directory("lower") || !make_directory("upper") ||
	    !make_directory("work") || !make_directory("merged"))
		return false;
	for (i = 0; i < FILES; i++)
		if (!make_lower_file(i))
			return false;
	return mount_merged();
}

static void remove_layers(void)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/merged", base);
	CHECK(!umount(path));
	CHECK(!umount(base));
}

bool setup_overlay(void)
{
	snprintf(base, sizeof(base), "%s", own_path("overlay"));
	return own_mounts() && CHECK(!mkdir(base, 0700)) && make_layers();
}

/* The same as holds(), through a mapping. */
static bool maps(const char *path, const char *expected, size_t size)
{
	int fd = open(path, O_RDONLY);
	void *got = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
	bool same = got != MAP_FAILED && !memcmp(got, expected, size);

	if (got != MAP_FAILED)
		munmap(got, size);
	if (fd >= 0)
		close(fd);
	return same;
}

/* Changes the file, which comes up, and @data with it. */
static void change(const char *path, char *data, size_t size)
{
	size_t offset = random_size(size) - 1;
	size_t most = size - offset;
	size_t patch = random_size(most < MAX_PATCH ? most : MAX_PATCH);
	int fd = open(path, O_RDWR);

	fill(data + offset, patch, random32());
	CHECK(fd >= 0);
	CHECK(pwrite(fd, data + offset, patch, offset) == (ssize_t)patch);
	CHECK(!close(fd));
}

void turn_overlay(void)
{
	char lower[MAX_SIZE], merged[MAX_SIZE], path[PATH_MAX];
	unsigned int file;
	size_t size;

	if (next_file == FILES) {
		remove_layers();
		if (!make_layers())
			return;
	}
	file = next_file++;
	size = size_of(file);
	fill(lower, size, key_of(file));
	memcpy(merged, lower, size);

	CHECK(holds(path_in("merged", "f", file), merged, size));
	change(path_in("merged", "f", file), merged, size);
	CHECK(holds(path_in("merged", "f", file), merged, size));
	CHECK(maps(path_in("merged", "f", file), merged, size));
	CHECK(holds(path_in("upper", "f", file), merged, size));
	CHECK(holds(path_in("lower", "f", file), lower, size));

	CHECK(!rename(path_in("merged", "f", file), path_in("merged", "g", file)));
	CHECK(is_gone(path_in("merged", "f", file)));
	CHECK(holds(path_in("merged", "g", file), merged, size));
	if (file % 2) {
		CHECK(!unlink(path_in("merged", "g", file)));
		CHECK(is_gone(path_in("merged", "g", file)));
		names--;
	}
	snprintf(path, sizeof(path), "%s/merged", base);
	CHECK(count_names(path) == names);
}
