/* SPDX-License-Identifier: GPL-2.0-only */
/* The static calls of optseed.ko. */
#ifndef OPTSEED_STATIC_H
#define OPTSEED_STATIC_H

#include <linux/types.h>

#include <optpoline_static_call.h>

/* Each key has four targets, KEY_0 to KEY_3, that the host may choose from. */
u64 optseed_number_0(u64 arg);
void optseed_event_0(u64 arg, u64 *result);

OPTPOLINE_STATIC_CALL_DECLARE(optseed_number, optseed_number_0);
/* Without a target at first. */
OPTPOLINE_STATIC_CALL_DECLARE(optseed_event, optseed_event_0);

/* In a file that the plugin does not touch. */
u64 optseed_static_outline(u64 arg);
u64 optseed_static_outline_tail(u64 arg);
void optseed_static_outline_event(u64 arg, u64 *result);

#endif /* OPTSEED_STATIC_H */
