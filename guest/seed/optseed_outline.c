// SPDX-License-Identifier: GPL-2.0-only
/* Static calls that the plugin did not log: they go through the trampolines. */
#include "optseed.h"
#include "optseed_static.h"

u64 optseed_static_outline(u64 arg)
{
	return optpoline_static_call(optseed_number)(arg) ^ OPTBENCH_CALL_MARK;
}

u64 optseed_static_outline_tail(u64 arg)
{
	return optpoline_static_call(optseed_number)(arg);
}

void optseed_static_outline_event(u64 arg, u64 *result)
{
	optpoline_static_call(optseed_event)(arg, result);
	*result ^= OPTBENCH_CALL_MARK;
}
