// SPDX-License-Identifier: GPL-2.0-or-later
/* What the families that mount file systems share. */
#define _GNU_SOURCE
#include <dirent.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>

#include "optload.h"

bool own_mounts(void)
{
	static bool done;

	if (!done)
		done = CHECK(!unshare(CLONE_NEWNS)) &&
		       CHECK(!mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	return done;
}

int count_names(const char *path)
{
	struct dirent *entry;
	DIR *dir = opendir(path);
	int count = 0;

	if (!CHECK(dir))
		return -1;
	while ((entry = readdir(dir)))
		count += strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..");
	CHECK(!closedir(dir));
	return count;
}
