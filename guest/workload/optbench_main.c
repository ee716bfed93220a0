// SPDX-License-Identifier: GPL-2.0-only
/*
 * optbench: indirect calls of known shape, each checked.
 *
 * One thread for each online CPU runs batches of the chosen scenarios in
 * turns, at a bounded rate.  A file in /proc of the module's name is the
 * interface: README.md describes it.  The threads exist from "run" to "stop";
 * the counts stay.
 *
 * Two modules are made with this file, optbench and optseed: what differs is
 * in their struct optbench_parts.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitmap.h>
#include <linux/cpu.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "optbench.h"

#ifndef CONFIG_RETPOLINE
#error "optbench measures retpoline call sites: CONFIG_RETPOLINE is needed"
#endif

#define OPTBENCH_MAX_SCENARIOS	96
#define OPTBENCH_NAP_MS		10
#define OPTBENCH_MAX_DEBT_MS	100
#define OPTBENCH_PHASE_AUTO	(-1)

struct optbench_count {
	u64 calls;
	u64 errors;
};

/* Each CPU's copy is written by that CPU's thread only. */
struct optbench_cpu {
	struct task_struct *thread;
	struct optbench_count counts[OPTBENCH_MAX_SCENARIOS];
};

static DEFINE_PER_CPU(struct optbench_cpu, optbench_cpus);

/* Serialises the commands; guards the threads and the next three. */
static DEFINE_MUTEX(optbench_lock);
static unsigned int optbench_nr_threads;
static DECLARE_BITMAP(optbench_active, OPTBENCH_MAX_SCENARIOS);

/* Read by the threads at any time. */
static unsigned int optbench_rate = 1;
static unsigned int optbench_period_ms = 2000;
static int optbench_phase = OPTBENCH_PHASE_AUTO;

static unsigned int optbench_nr_scenarios(void)
{
	const struct optbench_table *const *table;
	unsigned int count = 0;

	for (table = optbench_parts.tables; *table; table++)
		count += (*table)->count;
	return count;
}

static const struct optbench_scenario *optbench_scenario(unsigned int i)
{
	const struct optbench_table *const *table = optbench_parts.tables;

	for (; i >= (*table)->count; table++)
		i -= (*table)->count;
	return &(*table)->scenarios[i];
}

static unsigned int optbench_current_phase(void)
{
	int phase = READ_ONCE(optbench_phase);

	if (phase != OPTBENCH_PHASE_AUTO)
		return phase;
	return jiffies_to_msecs(jiffies) / READ_ONCE(optbench_period_ms);
}

static void optbench_one_batch(struct optbench_cpu *cpu,
			       struct optbench_run *run, unsigned int *turn)
{
	struct optbench_count *count;
	unsigned int errors;

	*turn = find_next_bit(optbench_active, OPTBENCH_MAX_SCENARIOS, *turn + 1);
	if (*turn >= OPTBENCH_MAX_SCENARIOS)
		*turn = find_first_bit(optbench_active, OPTBENCH_MAX_SCENARIOS);
	run->phase = optbench_current_phase();
	errors = optbench_scenario(*turn)->batch(run);

	count = &cpu->counts[*turn];
	WRITE_ONCE(count->errors, count->errors + errors);
	WRITE_ONCE(count->calls, count->calls + OPTBENCH_BATCH);
}

/* At rate 0 it never naps; else it pays what the time since last owes. */
static int optbench_thread(void *data)
{
	struct optbench_cpu *cpu = data;
	struct optbench_run run = { .seed = (u64)cpu | 1 };
	unsigned int turn = OPTBENCH_MAX_SCENARIOS - 1;
	ktime_t last = ktime_get();
	u64 owed_us = 0;	/* calls times 1000 */

	set_user_nice(current, 10);
	while (!kthread_should_stop()) {
		unsigned int rate = READ_ONCE(optbench_rate);
		ktime_t now = ktime_get();

		if (!rate) {
			optbench_one_batch(cpu, &run, &turn);
			cond_resched_tasks_rcu_qs();
			continue;
		}
		owed_us += ktime_us_delta(now, last) * rate;
		owed_us = min_t(u64, owed_us, OPTBENCH_MAX_DEBT_MS * 1000ULL *
				max_t(u64, rate, OPTBENCH_BATCH));
		last = now;
		while (owed_us >= OPTBENCH_BATCH * 1000 && !kthread_should_stop()) {
			owed_us -= OPTBENCH_BATCH * 1000;
			optbench_one_batch(cpu, &run, &turn);
			cond_resched_tasks_rcu_qs();
		}
		schedule_timeout_interruptible(msecs_to_jiffies(OPTBENCH_NAP_MS));
	}
	return 0;
}

static void optbench_stop(void)
{
	unsigned int i;

	for_each_possible_cpu(i) {
		struct optbench_cpu *cpu = per_cpu_ptr(&optbench_cpus, i);

		if (cpu->thread)
			kthread_stop(cpu->thread);
		cpu->thread = NULL;
	}
	optbench_nr_threads = 0;
	bitmap_zero(optbench_active, OPTBENCH_MAX_SCENARIOS);
}

static int optbench_start(void)
{
	unsigned int i;
	int err = 0;

	cpus_read_lock();
	for_each_online_cpu(i) {
		struct optbench_cpu *cpu = per_cpu_ptr(&optbench_cpus, i);
		struct task_struct *thread;

		if (cpu->thread)
			continue;
		thread = kthread_create_on_cpu(optbench_thread, cpu, i,
					       KBUILD_MODNAME "/%u");
		if (IS_ERR(thread)) {
			err = PTR_ERR(thread);
			break;
		}
		cpu->thread = thread;
		optbench_nr_threads++;
		wake_up_process(thread);
	}
	cpus_read_unlock();
	if (err)
		optbench_stop();
	return err;
}

static int optbench_run(const char *name)
{
	bool all = !strcmp(name, "all");
	bool found = false;
	unsigned int i;

	for (i = 0; i < optbench_nr_scenarios(); i++) {
		if (all || !strcmp(name, optbench_scenario(i)->name)) {
			set_bit(i, optbench_active);
			found = true;
		}
	}
	return found ? optbench_start() : -EINVAL;
}

static int optbench_reset(void)
{
	unsigned int i;

	if (optbench_nr_threads)
		return -EBUSY;
	for_each_possible_cpu(i) {
		struct optbench_cpu *cpu = per_cpu_ptr(&optbench_cpus, i);

		memset(cpu->counts, 0, sizeof(cpu->counts));
	}
	return 0;
}

static int optbench_set_phase(const char *value)
{
	unsigned int phase;
	int err;

	if (!strcmp(value, "auto")) {
		WRITE_ONCE(optbench_phase, OPTBENCH_PHASE_AUTO);
		return 0;
	}
	err = kstrtouint(value, 10, &phase);
	if (err)
		return err;
	if (phase > INT_MAX)
		return -EINVAL;
	WRITE_ONCE(optbench_phase, phase);
	return 0;
}

static int optbench_set(unsigned int *setting, const char *value,
			unsigned int least, unsigned int most)
{
	unsigned int number;
	int err = kstrtouint(value, 10, &number);

	if (err)
		return err;
	if (number < least || number > most)
		return -EINVAL;
	WRITE_ONCE(*setting, number);
	return 0;
}

static int optbench_command(char *line)
{
	char *word = strsep(&line, " ");

	if (!line) {
		if (!strcmp(word, "stop")) {
			optbench_stop();
			return 0;
		}
		return strcmp(word, "reset") ? -EINVAL : optbench_reset();
	}
	if (!strcmp(word, "run"))
		return optbench_run(line);
	if (!strcmp(word, "rate"))
		return optbench_set(&optbench_rate, line, 0, 100000);
	if (!strcmp(word, "period"))
		return optbench_set(&optbench_period_ms, line, 1, 3600000);
	if (!strcmp(word, "phase"))
		return optbench_set_phase(line);
	return -EINVAL;
}

static ssize_t optbench_write(struct file *file, const char __user *buffer,
			      size_t size, loff_t *pos)
{
	char line[64];
	int err;

	if (size >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, buffer, size))
		return -EFAULT;
	line[size] = '\0';

	err = mutex_lock_interruptible(&optbench_lock);
	if (err)
		return err;
	err = optbench_command(strim(line));
	mutex_unlock(&optbench_lock);
	return err ?: size;
}

static struct optbench_count optbench_sum(unsigned int scenario)
{
	struct optbench_count sum = { 0 };
	unsigned int i;

	for_each_possible_cpu(i) {
		struct optbench_count *count =
			&per_cpu_ptr(&optbench_cpus, i)->counts[scenario];

		sum.calls += READ_ONCE(count->calls);
		sum.errors += READ_ONCE(count->errors);
	}
	return sum;
}

static int optbench_show(struct seq_file *m, void *v)
{
	struct optbench_count total = { 0 };
	unsigned int i;

	for (i = 0; i < optbench_nr_scenarios(); i++) {
		const struct optbench_scenario *scenario = optbench_scenario(i);
		struct optbench_count sum = optbench_sum(i);

		total.calls += sum.calls;
		total.errors += sum.errors;
		seq_printf(m, "name=%s targets=%u order=%s running=%d calls=%llu errors=%llu\n",
			   scenario->name, scenario->targets, scenario->order,
			   test_bit(i, optbench_active), sum.calls, sum.errors);
	}
	seq_printf(m, "name=total threads=%u rate=%u phase=%u period_ms=%u calls=%llu errors=%llu\n",
		   READ_ONCE(optbench_nr_threads), READ_ONCE(optbench_rate),
		   optbench_current_phase(), READ_ONCE(optbench_period_ms),
		   total.calls, total.errors);
	return 0;
}

static int optbench_open(struct inode *inode, struct file *file)
{
	return single_open(file, optbench_show, NULL);
}

static const struct proc_ops optbench_proc_ops = {
	.proc_open	= optbench_open,
	.proc_read	= seq_read,
	.proc_write	= optbench_write,
	.proc_lseek	= seq_lseek,
	.proc_release	= single_release,
};

static int __init optbench_init(void)
{
	int err;

	if (optbench_nr_scenarios() > OPTBENCH_MAX_SCENARIOS)
		return -EINVAL;
	err = optbench_parts.init ? optbench_parts.init() : 0;
	if (err)
		return err;
	if (proc_create(KBUILD_MODNAME, 0600, NULL, &optbench_proc_ops))
		return 0;
	if (optbench_parts.exit)
		optbench_parts.exit();
	return -ENOMEM;
}

/* Removing the file waits for the commands under way. */
static void __exit optbench_exit(void)
{
	remove_proc_entry(KBUILD_MODNAME, NULL);
	optbench_stop();
	if (optbench_parts.exit)
		optbench_parts.exit();
}

module_init(optbench_init);
module_exit(optbench_exit);
MODULE_DESCRIPTION("Checked indirect calls of known shape, to test optpolines");
MODULE_LICENSE("GPL");
