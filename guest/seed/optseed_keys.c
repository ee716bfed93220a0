// SPDX-License-Identifier: GPL-2.0-only
/*
 * Keyed dispatch: an argument tells which of 16 handlers is called, as the
 * number of a system call does, or the address of an object.
 */
#include <optpoline.h>

#include "optseed.h"

#define HANDLERS	16
#define SHIFT		5

typedef u64 (*handler_fn)(u64 arg, unsigned int key) OPTPOLINE_KEY(2, 4, 0);
typedef u64 (*shifted_fn)(u64 arg, u64 flags) OPTPOLINE_KEY(2, 4, SHIFT);

struct packet_type;
typedef u64 (*packet_fn)(const struct packet_type *type, u64 arg)
	OPTPOLINE_KEY(1, 4, 6);

struct packet_type {
	packet_fn handler;
	unsigned int id;
} __aligned(64);

static __always_inline u64 handler_value(u64 arg, u64 key, unsigned int id)
{
	return optbench_value(arg + key * 3, id);
}

/* One of each type. */
#define DEFINE_HANDLER(nr)						\
static noinline __noclone u64						\
optseed_handler_##nr(u64 arg, unsigned int key)				\
{									\
	return handler_value(arg, key, nr);				\
}									\
static noinline __noclone u64 optseed_shifted_##nr(u64 arg, u64 flags)	\
{									\
	return handler_value(arg, flags, nr);				\
}									\
static noinline __noclone u64						\
optseed_packet_##nr(const struct packet_type *type, u64 arg)		\
{									\
	return handler_value(arg, type->id, nr);			\
}

DEFINE_HANDLER(0)
DEFINE_HANDLER(1)
DEFINE_HANDLER(2)
DEFINE_HANDLER(3)
DEFINE_HANDLER(4)
DEFINE_HANDLER(5)
DEFINE_HANDLER(6)
DEFINE_HANDLER(7)
DEFINE_HANDLER(8)
DEFINE_HANDLER(9)
DEFINE_HANDLER(10)
DEFINE_HANDLER(11)
DEFINE_HANDLER(12)
DEFINE_HANDLER(13)
DEFINE_HANDLER(14)
DEFINE_HANDLER(15)

#define ALL(name) {							\
	optseed_##name##_0, optseed_##name##_1, optseed_##name##_2,	\
	optseed_##name##_3, optseed_##name##_4, optseed_##name##_5,	\
	optseed_##name##_6, optseed_##name##_7, optseed_##name##_8,	\
	optseed_##name##_9, optseed_##name##_10, optseed_##name##_11,	\
	optseed_##name##_12, optseed_##name##_13, optseed_##name##_14,	\
	optseed_##name##_15						\
}

static const handler_fn handlers[HANDLERS] = ALL(handler);
static const shifted_fn shifted[HANDLERS] = ALL(shifted);

#define DEFINE_KEYED(name, order)					\
static noinline __noclone u64						\
optseed_##name(handler_fn handler, u64 arg, unsigned int key)		\
{									\
	return handler(arg, key) ^ OPTBENCH_CALL_MARK;			\
}									\
									\
static __always_inline bool right_##name(u64 arg, unsigned int id)	\
{									\
	return optseed_##name(READ_ONCE(handlers[id]), arg, id) ==	\
	       (handler_value(arg, id, id) ^ OPTBENCH_CALL_MARK);	\
}									\
DEFINE_CHECKS(name, order, HANDLERS)

DEFINE_KEYED(keyed_random, OPTBENCH_RANDOM)
DEFINE_KEYED(keyed_skewed, OPTBENCH_SKEWED)
DEFINE_KEYED(keyed_phase, OPTBENCH_PHASE)

/* A system call: nothing is left to do after the handler. */
static noinline __noclone u64 optseed_keyed_tail(unsigned int key, u64 arg)
{
	return READ_ONCE(handlers[key])(arg, key);
}

static __always_inline bool right_keyed_tail(u64 arg, unsigned int id)
{
	return optseed_keyed_tail(id, arg) == handler_value(arg, id, id);
}
DEFINE_CHECKS(keyed_tail, OPTBENCH_RANDOM, HANDLERS)

/* In one of eight calls the key names another handler than the pointer. */
static noinline __noclone u64
optseed_keyed_lies(handler_fn handler, u64 arg, unsigned int key)
{
	return handler(arg, key) ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_keyed_lies(u64 arg, unsigned int id)
{
	unsigned int key = arg >> 40 & 7 ? id : (arg >> 44) % HANDLERS;

	return optseed_keyed_lies(READ_ONCE(handlers[id]), arg, key) ==
	       (handler_value(arg, key, id) ^ OPTBENCH_CALL_MARK);
}
DEFINE_CHECKS(keyed_lies, OPTBENCH_RANDOM, HANDLERS)

/* The key is a few bits among others that mean nothing. */
static noinline __noclone u64
optseed_keyed_shifted(shifted_fn handler, u64 arg, u64 flags)
{
	return handler(arg, flags) ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_keyed_shifted(u64 arg, unsigned int id)
{
	u64 flags = (arg & ~((u64)(HANDLERS - 1) << SHIFT)) | (u64)id << SHIFT;

	return optseed_keyed_shifted(READ_ONCE(shifted[id]), arg, flags) ==
	       (handler_value(arg, flags, id) ^ OPTBENCH_CALL_MARK);
}
DEFINE_CHECKS(keyed_shifted, OPTBENCH_RANDOM, HANDLERS)

/*
 * The seed of the project: deliver_skb() knows the handler by the address of
 * its struct packet_type.  One of ours takes 64 bytes.
 */
#define PACKET_TYPE(number)						\
	[number] = { optseed_packet_##number, number }

static const struct packet_type packet_types[HANDLERS] __aligned(1024) = {
	PACKET_TYPE(0), PACKET_TYPE(1), PACKET_TYPE(2), PACKET_TYPE(3),
	PACKET_TYPE(4), PACKET_TYPE(5), PACKET_TYPE(6), PACKET_TYPE(7),
	PACKET_TYPE(8), PACKET_TYPE(9), PACKET_TYPE(10), PACKET_TYPE(11),
	PACKET_TYPE(12), PACKET_TYPE(13), PACKET_TYPE(14), PACKET_TYPE(15),
};

static noinline __noclone u64
optseed_keyed_pointer(const struct packet_type *type, u64 arg)
{
	return READ_ONCE(type->handler)(type, arg) ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_keyed_pointer(u64 arg, unsigned int id)
{
	return optseed_keyed_pointer(&packet_types[id], arg) ==
	       (handler_value(arg, id, id) ^ OPTBENCH_CALL_MARK);
}
DEFINE_CHECKS(keyed_pointer, OPTBENCH_RANDOM, HANDLERS)

static const struct optbench_scenario scenarios[] = {
	{ "keyed_random", "random", HANDLERS, batch_keyed_random },
	{ "keyed_skewed", "skewed", HANDLERS, batch_keyed_skewed },
	{ "keyed_phase", "phase", HANDLERS, batch_keyed_phase },
	{ "keyed_tail", "random", HANDLERS, batch_keyed_tail },
	{ "keyed_lies", "random", HANDLERS, batch_keyed_lies },
	{ "keyed_shifted", "random", HANDLERS, batch_keyed_shifted },
	{ "keyed_pointer", "random", HANDLERS, batch_keyed_pointer },
};

const struct optbench_table optseed_key_table = {
	scenarios, ARRAY_SIZE(scenarios)
};
