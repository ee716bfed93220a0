// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * optheld DIR: reads a directory and sleeps in the kernel's callback that takes
 * its first name, because the page for the names is missing until SIGUSR1 comes.
 * Then it prints the names, one on a line.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE	4096

static char *page;
static int faults;
static sigset_t release;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void withhold_page(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register withheld = {
		.range.len = PAGE, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	faults = syscall(SYS_userfaultfd, O_CLOEXEC);
	withheld.range.start = (unsigned long)page;
	if (page == MAP_FAILED || faults < 0 || ioctl(faults, UFFDIO_API, &api) ||
	    ioctl(faults, UFFDIO_REGISTER, &withheld))
		die("optheld: a page cannot be withheld");
}

static void *give_page(void *unused)
{
	struct uffdio_zeropage given = {
		.range = { .start = (unsigned long)page, .len = PAGE },
	};
	int signal;

	sigwait(&release, &signal);
	if (ioctl(faults, UFFDIO_ZEROPAGE, &given))
		die("optheld: the page cannot be given");
	return unused;
}

int main(int argc, char **argv)
{
	int fd = argc == 2 ? open(argv[1], O_RDONLY | O_DIRECTORY) : -1;
	pthread_t giver;
	long size, at;

	if (fd < 0)
		die("optheld: needs a directory");
	withhold_page();
	sigemptyset(&release);
	sigaddset(&release, SIGUSR1);
	sigprocmask(SIG_BLOCK, &release, NULL);
	if (pthread_create(&giver, NULL, give_page, NULL))
		die("optheld: no thread");
	size = syscall(SYS_getdents64, fd, page, PAGE);
	if (size < 0)
		die("optheld: the directory cannot be read");
	for (at = 0; at < size; at += ((struct dirent64 *)(page + at))->d_reclen)
		puts(((struct dirent64 *)(page + at))->d_name);
	return 0;
}
