// SPDX-License-Identifier: GPL-2.0-only
/*
 * Static calls, whose targets the host changes while they are called.
 *
 * A call tells by its result which target it reached.  Which ones it may reach
 * is what was written to /proc/optseed_static: before the host changes a
 * target, old and new; afterwards, the new one alone.
 */
#include <linux/bits.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "optseed.h"
#include "optseed_static.h"

#define TARGETS		4
#define NO_TARGET	TARGETS
#define OUTCOMES	(TARGETS + 1)

#define DEFINE_TARGET(id)						\
noinline u64 optseed_number_##id(u64 arg);				\
noinline u64 optseed_number_##id(u64 arg)				\
{									\
	return optbench_value(arg, id);					\
}									\
									\
noinline void optseed_event_##id(u64 arg, u64 *result);			\
noinline void optseed_event_##id(u64 arg, u64 *result)			\
{									\
	*result = optbench_value(arg, id);				\
}

DEFINE_TARGET(0)
DEFINE_TARGET(1)
DEFINE_TARGET(2)
DEFINE_TARGET(3)

OPTPOLINE_STATIC_CALL_DEFINE(optseed_number, optseed_number_0);
OPTPOLINE_STATIC_CALL_DEFINE_NULL(optseed_event, optseed_event_0);

struct static_key_state {
	const char *name;
	unsigned long allowed;	/* a bit for each outcome */
};

static struct static_key_state number = { "optseed_number", BIT(0) };
static struct static_key_state event = { "optseed_event", BIT(NO_TARGET) };

enum {
	INLINE, INLINE_TAIL, OPTED_OUT, INLINE_EVENT,
	OUTLINE, OUTLINE_TAIL, OUTLINE_EVENT,
	NR_SITES
};

static const struct {
	const char *name;
	struct static_key_state *key;
} sites[NR_SITES] = {
	[INLINE] = { "static_inline", &number },
	[INLINE_TAIL] = { "static_inline_tail", &number },
	[OPTED_OUT] = { "static_opted_out", &number },
	[INLINE_EVENT] = { "static_inline_event", &event },
	[OUTLINE] = { "static_outline", &number },
	[OUTLINE_TAIL] = { "static_outline_tail", &number },
	[OUTLINE_EVENT] = { "static_outline_event", &event },
};

/* Each CPU's copy is written by that CPU's thread only. */
static DEFINE_PER_CPU(u64 [NR_SITES][OUTCOMES], reached);

static noinline u64 optseed_static_inline(u64 arg)
{
	return optpoline_static_call(optseed_number)(arg) ^ OPTBENCH_CALL_MARK;
}

static noinline u64 optseed_static_inline_tail(u64 arg)
{
	return optpoline_static_call(optseed_number)(arg);
}

static noinline __no_optpoline u64 optseed_static_opted_out(u64 arg)
{
	return optpoline_static_call(optseed_number)(arg) ^ OPTBENCH_CALL_MARK;
}

static noinline void optseed_static_inline_event(u64 arg, u64 *result)
{
	optpoline_static_call(optseed_event)(arg, result);
	*result ^= OPTBENCH_CALL_MARK;
}

/*
 * @allowed is from before the call, which may have begun before a change.
 * Without a target an event leaves @arg where its result would be.
 */
static bool reached_rightly(unsigned int site, unsigned long allowed, u64 value,
			    u64 arg)
{
	unsigned int id;

	for (id = 0; id < TARGETS; id++)
		if (value == optbench_value(arg, id))
			break;
	if (id == NO_TARGET && (sites[site].key != &event || value != arg))
		return false;
	this_cpu_inc(reached[site][id]);
	return (allowed | READ_ONCE(sites[site].key->allowed)) & BIT(id);
}

#define DEFINE_NUMBER(name, site, mark)					\
static __always_inline bool right_##name(u64 arg, unsigned int id)	\
{									\
	unsigned long allowed = READ_ONCE(number.allowed);		\
	u64 value = optseed_##name(arg) ^ (mark);			\
									\
	return reached_rightly(site, allowed, value, arg);		\
}									\
DEFINE_CHECKS(name, OPTBENCH_SKEWED, 1)

#define DEFINE_EVENT(name, site)					\
static __always_inline bool right_##name(u64 arg, unsigned int id)	\
{									\
	unsigned long allowed = READ_ONCE(event.allowed);		\
	u64 value = arg;						\
									\
	optseed_##name(arg, &value);					\
	return reached_rightly(site, allowed,				\
			       value ^ OPTBENCH_CALL_MARK, arg);	\
}									\
DEFINE_CHECKS(name, OPTBENCH_SKEWED, 1)

DEFINE_NUMBER(static_inline, INLINE, OPTBENCH_CALL_MARK)
DEFINE_NUMBER(static_inline_tail, INLINE_TAIL, 0)
DEFINE_NUMBER(static_opted_out, OPTED_OUT, OPTBENCH_CALL_MARK)
DEFINE_NUMBER(static_outline, OUTLINE, OPTBENCH_CALL_MARK)
DEFINE_NUMBER(static_outline_tail, OUTLINE_TAIL, 0)
DEFINE_EVENT(static_inline_event, INLINE_EVENT)
DEFINE_EVENT(static_outline_event, OUTLINE_EVENT)

static const struct optbench_scenario scenarios[] = {
	{ "static_inline", "static", TARGETS, batch_static_inline },
	{ "static_inline_tail", "static", TARGETS, batch_static_inline_tail },
	{ "static_opted_out", "static", TARGETS, batch_static_opted_out },
	{ "static_inline_event", "static", TARGETS, batch_static_inline_event },
	{ "static_outline", "static", TARGETS, batch_static_outline },
	{ "static_outline_tail", "static", TARGETS, batch_static_outline_tail },
	{ "static_outline_event", "static", TARGETS, batch_static_outline_event },
};

const struct optbench_table optseed_static_table = {
	scenarios, ARRAY_SIZE(scenarios)
};

static void show_outcome(struct seq_file *m, unsigned int site, unsigned int id)
{
	const struct static_key_state *key = sites[site].key;
	u64 calls = 0;
	unsigned int cpu;

	for_each_possible_cpu(cpu)
		calls += READ_ONCE(per_cpu(reached, cpu)[site][id]);
	seq_printf(m, "name=%s key=%s target=", sites[site].name, key->name);
	if (id == NO_TARGET)
		seq_puts(m, "none");
	else
		seq_printf(m, "%s_%u", key->name, id);
	seq_printf(m, " allowed=%d calls=%llu\n",
		   !!(READ_ONCE(key->allowed) & BIT(id)), calls);
}

static int show(struct seq_file *m, void *v)
{
	unsigned int site, id;

	for (site = 0; site < NR_SITES; site++)
		for (id = 0; id < (sites[site].key == &event ? OUTCOMES : TARGETS); id++)
			show_outcome(m, site, id);
	return 0;
}

static int outcome(const struct static_key_state *key, const char *name)
{
	size_t size = strlen(key->name);

	if (key == &event && !strcmp(name, "none"))
		return NO_TARGET;
	if (strncmp(name, key->name, size) || name[size] != '_' ||
	    name[size + 1] < '0' || name[size + 1] >= '0' + TARGETS ||
	    name[size + 2])
		return -EINVAL;
	return name[size + 1] - '0';
}

/* A key, then what its calls may reach. */
static int allow(char *line)
{
	char *word = strsep(&line, " ");
	struct static_key_state *key;
	unsigned long allowed = 0;
	int id;

	if (!strcmp(word, number.name))
		key = &number;
	else if (!strcmp(word, event.name))
		key = &event;
	else
		return -EINVAL;
	while ((word = strsep(&line, " "))) {
		id = outcome(key, word);
		if (id < 0)
			return id;
		allowed |= BIT(id);
	}
	if (!allowed)
		return -EINVAL;
	WRITE_ONCE(key->allowed, allowed);
	return 0;
}

static ssize_t optseed_static_write(struct file *file, const char __user *buffer,
				    size_t size, loff_t *pos)
{
	char line[128];
	int err;

	if (size >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, buffer, size))
		return -EFAULT;
	line[size] = '\0';
	err = allow(strim(line));
	return err ?: size;
}

static int optseed_static_open(struct inode *inode, struct file *file)
{
	return single_open(file, show, NULL);
}

static const struct proc_ops proc_ops = {
	.proc_open	= optseed_static_open,
	.proc_read	= seq_read,
	.proc_write	= optseed_static_write,
	.proc_lseek	= seq_lseek,
	.proc_release	= single_release,
};

int optseed_static_init(void)
{
	return proc_create("optseed_static", 0600, NULL, &proc_ops) ? 0 : -ENOMEM;
}

void optseed_static_exit(void)
{
	remove_proc_entry("optseed_static", NULL);
}
