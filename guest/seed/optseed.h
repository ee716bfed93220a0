/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of optseed.ko share, besides what optbench.h has. */
#ifndef OPTSEED_H
#define OPTSEED_H

#include "../workload/optbench_drive.h"

struct proc_dir_entry;

extern const struct optbench_table optseed_shape_table;
extern const struct optbench_table optseed_more_shape_table;
extern const struct optbench_table optseed_reg_table;
extern const struct optbench_table optseed_key_table;
extern const struct optbench_table optseed_static_table;
extern const struct optbench_table optseed_stack_table;

/* Each makes a file in /proc, or removes it. */
int optseed_static_init(void);
void optseed_static_exit(void);
int optseed_stack_init(void);
void optseed_stack_exit(void);

/* Two targets of a kind, optseed_NAME_0 and _1; @value may use id. */
#define DEFINE_TARGETS(type, name, value, params...)			\
static noinline __noclone type optseed_##name##_0(params)		\
{									\
	const unsigned int id __maybe_unused = 0;			\
									\
	return value;							\
}									\
									\
static noinline __noclone type optseed_##name##_1(params)		\
{									\
	const unsigned int id __maybe_unused = 1;			\
									\
	return value;							\
}									\
									\
static const struct { typeof(optseed_##name##_0) *call; } name##_targets[2] = { \
	{ optseed_##name##_0 }, { optseed_##name##_1 }			\
}

#endif /* OPTSEED_H */
