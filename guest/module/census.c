// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The census: what census_stubs.S counts in, and how it is emptied.
 *
 * The host starts a census by pointing the first instruction of every thunk at
 * its stub, and ends it by putting that instruction back.  Both are writes from
 * outside; header.thunk_head keeps what is put back.  In between the stubs
 * count; afterwards the host reads the slots of every CPU as they are.
 *
 * Slots are claimed and never given back, so that the stubs need no lock.  The
 * host has them cleared between two censuses.  A task that was preempted inside
 * a stub may count after that: one stray count does no harm.
 */
#include <linux/cpumask.h>
#include <linux/errno.h>
#include <linux/percpu.h>
#include <linux/string.h>

#include "optpoline.h"

/* What census_stubs.S takes for granted. */
static_assert(sizeof(struct optp_census_slot) == OPTP_CENSUS_SLOT_SIZE);
static_assert(1 << OPTP_CENSUS_BUCKET_SHIFT == 8 * OPTP_CENSUS_SLOT_SIZE);

#define OPTP_CENSUS_CHUNK_BYTES	(256 << OPTP_CENSUS_BUCKET_SHIFT)

u64 optp_census_chunks[OPTP_CENSUS_CHUNKS];
DEFINE_PER_CPU(u64, optp_census_other);

/**
 * optp_census_start() - make the slots, and tell the host where they are
 *
 * Return: 0 or -errno
 */
int optp_census_start(void)
{
	struct optp_header *h = optp_header;
	unsigned int i;

	for (i = 0; i < OPTP_CENSUS_CHUNKS; i++) {
		struct optp_census_slot __percpu *chunk;

		chunk = __alloc_percpu(OPTP_CENSUS_CHUNK_BYTES,
				       8 * sizeof(*chunk));
		if (!chunk) {
			optp_census_stop();
			return -ENOMEM;
		}
		optp_census_chunks[i] = (__force unsigned long)chunk;
	}

	for (i = 0; i < OPTP_NR_REGS; i++) {
		if (optp_thunks[i])
			memcpy(h->thunk_head[i], (void *)optp_thunks[i],
			       OPTP_THUNK_HEAD);
	}
	memcpy(h->census_stub, optp_census_stubs, sizeof(h->census_stub));
	h->census_chunks = (unsigned long)optp_census_chunks;
	h->census_other = (unsigned long)&optp_census_other;
	h->nr_census_chunks = OPTP_CENSUS_CHUNKS;
	h->census_chunk_slots = OPTP_CENSUS_CHUNK_BYTES / OPTP_CENSUS_SLOT_SIZE;
	return 0;
}

/**
 * optp_census_stop() - free the slots
 *
 * No thunk leads to a stub: the host holds the module for as long as one does.
 */
void optp_census_stop(void)
{
	unsigned int i;

	for (i = 0; i < OPTP_CENSUS_CHUNKS; i++) {
		free_percpu((u8 __percpu *)(unsigned long)optp_census_chunks[i]);
		optp_census_chunks[i] = 0;
	}
}

static bool optp_census_is_armed(void)
{
	unsigned int i;

	for (i = 0; i < OPTP_NR_REGS; i++) {
		if (optp_thunks[i] &&
		    memcmp(optp_header->thunk_head[i], (void *)optp_thunks[i],
			   OPTP_THUNK_HEAD))
			return true;
	}
	return false;
}

/**
 * optp_census_clear() - empty the slots of every CPU
 *
 * Return: 0, or -EBUSY during a census
 */
int optp_census_clear(void)
{
	unsigned int i;
	int cpu;

	if (optp_census_is_armed())
		return -EBUSY;

	for_each_possible_cpu(cpu) {
		for (i = 0; i < OPTP_CENSUS_CHUNKS; i++) {
			u8 __percpu *chunk =
				(u8 __percpu *)(unsigned long)optp_census_chunks[i];

			memset(per_cpu_ptr(chunk, cpu), 0, OPTP_CENSUS_CHUNK_BYTES);
		}
		per_cpu(optp_census_other, cpu) = 0;
	}
	return 0;
}
