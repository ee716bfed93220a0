// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stack traces taken in the targets.  The kernel unwinds through a site by
 * what objtool found in the object: each trace must be as deep as the first
 * one, which the unpatched site gave, and end where it did.
 *
 * /proc/optseed_stack shows the last trace by either call of the inline site,
 * and by the tail site:
 *
 *	trace=fast taken=160 depth=7
 *	 optseed_traced_0+0x1c/0x40 [optseed]
 *	 ...
 */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/spinlock.h>
#include <linux/stacktrace.h>

#include "optseed.h"

#define MAX_DEPTH	24

struct trace {
	unsigned int depth;
	unsigned long entries[MAX_DEPTH];
};

enum { SLOW, FAST, TAIL, NR_TRACES };

static struct {
	const char *name;
	struct trace last;
	u64 taken;
} traces[NR_TRACES] = {
	[SLOW] = { "slow" },
	[FAST] = { "fast" },
	[TAIL] = { "tail" },
};

static DEFINE_SPINLOCK(traces_lock);

DEFINE_TARGETS(u64, traced, ({
	trace->depth = stack_trace_save(trace->entries, MAX_DEPTH, 0);
	optbench_value(arg, id);
}), u64 arg, struct trace *trace);

typedef u64 (*stack_fn)(u64 arg, struct trace *trace);

static noinline __noclone u64
optseed_stack_call(stack_fn target, u64 arg, struct trace *trace)
{
	return target(arg, trace) ^ OPTBENCH_CALL_MARK;
}

static noinline __noclone u64
optseed_stack_tail(stack_fn target, u64 arg, struct trace *trace)
{
	return target(arg, trace);
}

static void keep(unsigned int which, const struct trace *trace)
{
	spin_lock(&traces_lock);
	traces[which].last = *trace;
	traces[which].taken++;
	spin_unlock(&traces_lock);
}

/* @first is the first trace's, and 0 before it. */
static bool same(unsigned long *first, unsigned long now)
{
	return (cmpxchg(first, 0, now) ?: now) == now;
}

struct known {
	unsigned long ret;	/* where the target returns to */
	unsigned long depth;
	unsigned long end;
};

static bool is_complete(struct known *known, const struct trace *trace)
{
	return trace->depth > 2 && trace->depth < MAX_DEPTH &&
	       optbench_same_return(&known->ret, trace->entries[1]) &&
	       same(&known->depth, trace->depth) &&
	       same(&known->end, trace->entries[trace->depth - 1]);
}

static __always_inline bool right_stack_call(u64 arg, unsigned int id)
{
	static struct known known;
	struct trace trace = { 0 };
	u64 value = optseed_stack_call(traced_targets[id].call, arg, &trace);

	if (value != (optbench_value(arg, id) ^ OPTBENCH_CALL_MARK) ||
	    !is_complete(&known, &trace))
		return false;
	keep(trace.entries[1] == known.ret ? SLOW : FAST, &trace);
	return true;
}
DEFINE_CHECKS(stack_call, OPTBENCH_SKEWED, 2)

static __always_inline bool right_stack_tail(u64 arg, unsigned int id)
{
	static struct known known;
	struct trace trace = { 0 };
	u64 value = optseed_stack_tail(traced_targets[id].call, arg, &trace);

	if (value != optbench_value(arg, id) || !is_complete(&known, &trace))
		return false;
	keep(TAIL, &trace);
	return true;
}
DEFINE_CHECKS(stack_tail, OPTBENCH_SKEWED, 2)

static const struct optbench_scenario scenarios[] = {
	{ "stack_call", "skewed", 2, batch_stack_call },
	{ "stack_tail", "skewed", 2, batch_stack_tail },
};

const struct optbench_table optseed_stack_table = {
	scenarios, ARRAY_SIZE(scenarios)
};

static int show(struct seq_file *m, void *v)
{
	unsigned int which, i;
	struct trace trace;
	u64 taken;

	for (which = 0; which < NR_TRACES; which++) {
		spin_lock(&traces_lock);
		trace = traces[which].last;
		taken = traces[which].taken;
		spin_unlock(&traces_lock);
		seq_printf(m, "trace=%s taken=%llu depth=%u\n",
			   traces[which].name, taken, trace.depth);
		for (i = 0; i < trace.depth; i++)
			seq_printf(m, " %pS\n", (void *)trace.entries[i]);
	}
	return 0;
}

int optseed_stack_init(void)
{
	return proc_create_single("optseed_stack", 0400, NULL, show) ? 0 : -ENOMEM;
}

void optseed_stack_exit(void)
{
	remove_proc_entry("optseed_stack", NULL);
}
