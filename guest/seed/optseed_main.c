// SPDX-License-Identifier: GPL-2.0-only
/* What optseed.ko is made of; optbench_main.c drives it. */
#include "../workload/optbench_main.c"

#include "optseed.h"

static const struct optbench_table *const optseed_tables[] = {
	&optbench_site_table, &optseed_shape_table, &optseed_more_shape_table,
	&optseed_reg_table, &optseed_key_table, &optseed_static_table,
	&optseed_stack_table, NULL
};

static int optseed_init(void)
{
	int err = optseed_static_init();

	if (err)
		return err;
	err = optseed_stack_init();
	if (err)
		optseed_static_exit();
	return err;
}

static void optseed_exit(void)
{
	optseed_stack_exit();
	optseed_static_exit();
}

const struct optbench_parts optbench_parts = {
	.tables = optseed_tables,
	.init = optseed_init,
	.exit = optseed_exit,
};
