// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The mailbox: a thread that does for the host what only the guest can do.
 *
 * The host cannot wake a thread, so this one polls: every 1-2 ms within a second
 * of a request, else every 20 ms.
 *
 *	host				this thread
 *	op = ...
 *	seq = s		------->	1. seq is new (acquire)
 *					2. serve op
 *					3. result = ...
 *	sees done	<-------	4. done_seq = s (release)
 *
 * A request that is overwritten before this thread sees it is not served.  The
 * host waits for done_seq before its next request.
 */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/smp.h>
#include <asm/sync_core.h>

#include "optpoline.h"

static struct task_struct *optp_mailbox_task;

static void optp_sync_core(void *unused)
{
	sync_core();
}

static int optp_hold(void)
{
	if (optp_header->held)
		return 0;
	/* Fails during a removal, which cannot be stopped. */
	if (!try_module_get(THIS_MODULE))
		return -ENODEV;
	WRITE_ONCE(optp_header->held, 1);
	return 0;
}

static int optp_release(void)
{
	if (!optp_header->held)
		return 0;
	WRITE_ONCE(optp_header->held, 0);
	module_put(THIS_MODULE);
	return 0;
}

static int optp_serve(enum optp_request op)
{
	switch (op) {
	case OPTP_REQUEST_GRACE:
		/* Idle tasks, and code that runs with preemption off... */
		synchronize_rcu_tasks_rude();
		/* ...and preempted tasks. */
		synchronize_rcu_tasks();
		return 0;
	case OPTP_REQUEST_SYNC:
		on_each_cpu(optp_sync_core, NULL, 1);
		return 0;
	case OPTP_REQUEST_MODULES:
		return optp_modules_list();
	case OPTP_REQUEST_HOLD:
		return optp_hold();
	case OPTP_REQUEST_RELEASE:
		return optp_release();
	case OPTP_REQUEST_CENSUS_CLEAR:
		return optp_census_clear();
	}
	return -EINVAL;
}

static int optp_mailbox(void *unused)
{
	unsigned long awake_until = jiffies;

	while (!kthread_should_stop()) {
		/* Pairs with the host's order of writes: op, then seq. */
		u32 seq = smp_load_acquire(&optp_header->request_seq);

		if (seq != optp_header->request_done_seq) {
			enum optp_request op = READ_ONCE(optp_header->request_op);

			WRITE_ONCE(optp_header->request_result, optp_serve(op));
			/* The host sees the result before done_seq. */
			smp_store_release(&optp_header->request_done_seq, seq);
			awake_until = jiffies + HZ;
		}

		/* Idle sleeps, which the load average does not count. */
		if (time_before(jiffies, awake_until))
			usleep_idle_range(1000, 2000);
		else
			schedule_timeout_idle(msecs_to_jiffies(20));
	}
	return 0;
}

/**
 * optp_mailbox_start() - serve requests
 *
 * Return: 0 or -errno
 */
int optp_mailbox_start(void)
{
	optp_mailbox_task = kthread_run(optp_mailbox, NULL, "optpoline");
	return PTR_ERR_OR_ZERO(optp_mailbox_task);
}

/**
 * optp_mailbox_stop() - finish the request that is being served, and stop
 */
void optp_mailbox_stop(void)
{
	kthread_stop(optp_mailbox_task);
}
