// SPDX-License-Identifier: GPL-2.0-only
/* The call and tail sites of optbench, as inline sites of this module. */
#include "../workload/optbench_sites.c"
