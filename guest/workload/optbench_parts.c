// SPDX-License-Identifier: GPL-2.0-only
/* What optbench.ko is made of. */
#include <linux/stddef.h>

#include "optbench.h"

static const struct optbench_table *const optbench_tables[] = {
	&optbench_site_table, &optbench_reg_table, NULL
};

const struct optbench_parts optbench_parts = { .tables = optbench_tables };
