// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * optload: keeps all CPUs of a guest busy in the kernel, by many paths, and
 * checks what comes back.
 *
 * The main process holds open what must not change during the run, starts
 * two pinned workers for each CPU (so that one runs while the other sleeps),
 * and writes the sums of their counts to the state file.  A mismatch is
 * counted, never fatal: the load goes on.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "optload.h"

/*
 * The weights hold down the number of targets that are hot at one site: what
 * goes through vfs_read and its like with a type of its own comes rarely.
 */
const struct family families[] = {
	{ "syscall", 3, NULL, turn_syscall, false },
	{ "pipe", 6, setup_pipe, turn_pipe, false },
	{ "echo", 4, setup_echo, turn_echo, false },
	{ "unix", 3, setup_unix, turn_unix, false },
	{ "futex", 2, setup_futex, turn_futex, false },
	{ "tcp4", 4, setup_tcp4, turn_tcp4, false },
	{ "tcp6", 2, setup_tcp6, turn_tcp6, false },
	{ "udp4", 5, setup_udp4, turn_udp4, false },
	{ "udp6", 3, setup_udp6, turn_udp6, false },
	{ "file", 6, setup_file, turn_file, false },
	{ "stat", 4, setup_stat, turn_stat, false },
	{ "proc", 1, NULL, turn_proc, false },
	{ "event", 4, setup_event, turn_event, false },
	{ "timer", 1, setup_timer, turn_timer, false },
	{ "signal", 2, setup_signal, turn_signal, false },
	{ "fork", 1, NULL, turn_fork, false },
	{ "memory", 2, setup_memory, turn_memory, false },
	{ "splice", 1, setup_splice, turn_splice, false },
	{ "dev", 1, setup_dev, turn_dev, false },
	{ "veth", 3, setup_veth, turn_veth, true },
	{ "fuse", 2, setup_fuse, turn_fuse, true },
	{ "overlay", 2, setup_overlay, turn_overlay, true },
};

const unsigned int nr_families = ARRAY_SIZE(families);

static struct options options = { .state = "/run/optload" };
static char directory[PATH_MAX];

static void show_help(void)
{
	unsigned int i;

	fputs("usage: optload [--seconds N] [--cpus N] [--families A,B,...] [--state FILE]\n"
	      "Loads the kernel and checks its answers; exit code 1 after an error.\n"
	      "  --seconds N       end after N seconds (default 0: at SIGTERM)\n"
	      "  --cpus N          use N CPUs (default: all)\n"
	      "  --families A,...  only these (default: all but what is in brackets)\n"
	      "  --state FILE      where the counts go, on tmpfs (default /run/optload)\n"
	      "families:", stdout);
	for (i = 0; i < nr_families; i++)
		printf(families[i].extra ? " [%s]" : " %s", families[i].name);
	fputs("\nexample: optload --seconds 30 --families pipe,tcp4,file\n", stdout);
	exit(0);
}

static void die(const char *what, const char *which)
{
	fprintf(stderr, "optload: %s: %s (see optload --help)\n", what, which);
	exit(2);
}

static unsigned int parse_number(const char *text)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (!*text || *end || *text == '-' || value > 1000000)
		die("not a number from 0 to 1000000", text);
	return value;
}

static void choose(char *names)
{
	char *name;
	unsigned int i;

	memset(options.chosen, 0, sizeof(options.chosen));
	while ((name = strsep(&names, ","))) {
		for (i = 0; i < nr_families; i++)
			if (!strcmp(name, families[i].name))
				break;
		if (i == nr_families)
			die("no such family", name);
		options.chosen[i] = true;
	}
}

static void parse(int argc, char **argv)
{
	static const struct option known[] = {
		{ "seconds", required_argument, NULL, 's' },
		{ "cpus", required_argument, NULL, 'c' },
		{ "families", required_argument, NULL, 'f' },
		{ "state", required_argument, NULL, 'o' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	unsigned int i;
	int option;

	for (i = 0; i < nr_families; i++)
		options.chosen[i] = !families[i].extra;
	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
		if (option == 's')
			options.seconds = parse_number(optarg);
		else if (option == 'c')
			options.cpus = parse_number(optarg);
		else if (option == 'f')
			choose(optarg);
		else if (option == 'o')
			options.state = optarg;
		else if (option == 'h')
			show_help();
		else
			exit(2);
	}
	if (optind < argc)
		die("unexpected argument", argv[optind]);
}

static void remove_directory(const char *path)
{
	struct dirent *entry;
	DIR *dir = opendir(path);
	char name[PATH_MAX];

	while (dir && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
		if (unlink(name) && errno == EISDIR)
			remove_directory(name);
	}
	if (dir)
		closedir(dir);
	rmdir(path);
}

static void prepare(void)
{
	cpu_set_t allowed;
	unsigned int most;

	if (sched_getaffinity(0, sizeof(allowed), &allowed))
		die("cannot tell the CPUs", strerror(errno));
	most = CPU_COUNT(&allowed);
	if (!options.cpus || options.cpus > most)
		options.cpus = most;
	if (options.cpus * WORKERS_PER_CPU > MAX_WORKERS)
		options.cpus = MAX_WORKERS / WORKERS_PER_CPU;
	snprintf(directory, sizeof(directory), "%s.d", options.state);
	remove_directory(directory);
	if (mkdir(directory, 0700))
		die("cannot make the directory", directory);
	self.dir = directory;
}

int main(int argc, char **argv)
{
	unsigned long long errors;

	if (argc == 3 && !strcmp(argv[1], EXIT_CODE_OPTION))
		return parse_number(argv[2]);
	parse(argc, argv);
	prepare();
	errors = run_workers(&options);
	remove_directory(directory);
	return errors ? 1 : 0;
}
