// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * optpoline: the guest's part of optpolined.
 *
 * The daemon on the host watches and patches this kernel from outside.  This
 * module provides what needs code in the guest: executable memory near the
 * kernel's text, per-CPU counters, a handler for its breakpoints, and grace
 * periods.  It patches nothing itself.
 *
 * All of it is found through optp_header.  The header is alone on its page,
 * and its magic stands at the start of that page only while all else is valid:
 * it is written last at load and wiped first at unload.  The magic is put
 * together at run time from two halves, so that no copy of it lies in the
 * module's image for the host to trip over.
 *
 * The daemon holds a reference on the module (OPTP_REQUEST_HOLD) for as long
 * as anything in the kernel leads here, so no CPU is inside at unload.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/elf.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/random.h>
#include <linux/slab.h>

#include "compat.h"
#include "optpoline.h"

#define OPTP_RECORDS_MAX	(128 * OPTP_RECORDS_PER_CHUNK)
#define OPTP_MODULES_MAX	65536

/* What stubs.S and the daemon take for granted. */
static_assert(sizeof(struct optp_record) == 64);
static_assert(sizeof(struct optp_slot) == OPTP_SLOT_SIZE);
static_assert(offsetof(struct optp_slot, count) == OPTP_SLOT_COUNT);
static_assert(offsetof(struct optp_record, other) == OPTP_RECORD_OTHER);
static_assert(OPTP_RECORD_SLOTS == 7);
static_assert(sizeof(struct optp_poke_entry) == 32);
static_assert(sizeof(struct optp_header) <= PAGE_SIZE);
static_assert(OPTP_MODULE_NAME_LEN >= MODULE_NAME_LEN);

static unsigned int nr_records = 16384;
module_param(nr_records, uint, 0444);
MODULE_PARM_DESC(nr_records,
		 "sites that can learn at a time: a multiple of 512, to 65536 (64 bytes each on every CPU)");

static unsigned int nr_modules = 512;
module_param(nr_modules, uint, 0444);
MODULE_PARM_DESC(nr_modules, "modules that can be listed: 1 to 65536");

static unsigned int arena_bytes;
module_param(arena_bytes, uint, 0444);
MODULE_PARM_DESC(arena_bytes,
		 "how much of the arena the host may use, in whole pages; 0: all of it");

/* Nothing else lies on the header's page. */
static union {
	struct optp_header header;
	u8 page[PAGE_SIZE];
} optp_page __aligned(PAGE_SIZE);

struct optp_header *const optp_header = &optp_page.header;

static u64 *optp_record_chunks;
static unsigned int optp_nr_record_chunks;

static void optp_records_free(void)
{
	while (optp_nr_record_chunks) {
		u64 offset = optp_record_chunks[--optp_nr_record_chunks];

		free_percpu((struct optp_record __percpu *)offset);
	}
	kfree(optp_record_chunks);
}

static int optp_records_alloc(void)
{
	const unsigned int nr_chunks = nr_records / OPTP_RECORDS_PER_CHUNK;

	optp_record_chunks = kcalloc(nr_chunks, sizeof(u64), GFP_KERNEL);
	if (!optp_record_chunks)
		return -ENOMEM;

	while (optp_nr_record_chunks < nr_chunks) {
		struct optp_record __percpu *chunk;

		chunk = __alloc_percpu(OPTP_RECORDS_PER_CHUNK * sizeof(*chunk),
				       sizeof(*chunk));
		if (!chunk) {
			optp_records_free();
			return -ENOMEM;
		}
		optp_record_chunks[optp_nr_record_chunks++] =
			(__force unsigned long)chunk;
	}
	return 0;
}

static u64 optp_vmcoreinfo_size(phys_addr_t paddr)
{
	const struct elf64_note *note = phys_to_virt(paddr);

	return sizeof(*note) + ALIGN(note->n_namesz, 4) +
	       ALIGN(note->n_descsz, 4);
}

static void optp_header_fill(void)
{
	struct optp_header *h = optp_header;

	h->abi_version = OPTP_ABI_VERSION;
	h->header_size = sizeof(*h);
	h->self = (unsigned long)h;
	h->boot_nonce = get_random_u64();

	h->vmcoreinfo_paddr = paddr_vmcoreinfo_note();
	h->vmcoreinfo_size = optp_vmcoreinfo_size(h->vmcoreinfo_paddr);

	h->module_text = optp_module_text(THIS_MODULE);
	h->module_text_size = optp_module_text_size(THIS_MODULE);
	h->arena = (unsigned long)optp_arena;
	h->arena_size = arena_bytes ?: optp_arena_end - optp_arena;

	h->per_cpu_offset = (unsigned long)__per_cpu_offset;
	h->nr_cpu_ids = nr_cpu_ids;
	h->nr_record_chunks = optp_nr_record_chunks;
	h->record_chunks = (unsigned long)optp_record_chunks;
	h->records_per_chunk = OPTP_RECORDS_PER_CHUNK;
	h->record_size = sizeof(struct optp_record);

	memcpy(h->thunk, optp_thunks, sizeof(h->thunk));
	memcpy(h->learn_stub, optp_learn_stubs, sizeof(h->learn_stub));
}

static void optp_header_publish(void)
{
	u64 *magic = (u64 *)optp_header->magic;
	u64 low, high;

	static_assert(sizeof(OPTP_MAGIC) - 1 == sizeof(optp_header->magic));
	memcpy(&low, OPTP_MAGIC, sizeof(low));
	memcpy(&high, OPTP_MAGIC + sizeof(low), sizeof(high));

	/* A host that sees the magic sees every field: its reads are the partner. */
	smp_wmb();
	WRITE_ONCE(magic[1], high);
	WRITE_ONCE(magic[0], low);
}

static void optp_header_withdraw(void)
{
	u64 *magic = (u64 *)optp_header->magic;

	WRITE_ONCE(magic[0], 0);
	WRITE_ONCE(magic[1], 0);
	/* The magic is gone before anything that it vouches for. */
	smp_wmb();
}

static int __init optp_init(void)
{
	int err;

	if (!nr_records || nr_records > OPTP_RECORDS_MAX ||
	    nr_records % OPTP_RECORDS_PER_CHUNK) {
		pr_err("nr_records must be a multiple of %u, to %u\n",
		       OPTP_RECORDS_PER_CHUNK, OPTP_RECORDS_MAX);
		return -EINVAL;
	}
	if (!nr_modules || nr_modules > OPTP_MODULES_MAX) {
		pr_err("nr_modules must be 1 to %u\n", OPTP_MODULES_MAX);
		return -EINVAL;
	}

	if (arena_bytes % PAGE_SIZE || arena_bytes > optp_arena_end - optp_arena) {
		pr_err("arena_bytes must be a multiple of %lu, to %tu\n",
		       PAGE_SIZE, optp_arena_end - optp_arena);
		return -EINVAL;
	}

	err = optp_records_alloc();
	if (err)
		return err;
	err = optp_census_start();
	if (err)
		goto free_records;
	err = optp_int3_start(nr_records);
	if (err)
		goto stop_census;
	err = optp_modules_start(nr_modules);
	if (err)
		goto stop_int3;
	err = optp_mailbox_start();
	if (err)
		goto stop_modules;

	optp_header_fill();
	optp_header_publish();
	pr_info("ready: ABI %u, %u records on each CPU, arena of %llu KiB\n",
		OPTP_ABI_VERSION, nr_records, optp_header->arena_size >> 10);
	return 0;

stop_modules:
	optp_modules_stop();
stop_int3:
	optp_int3_stop();
stop_census:
	optp_census_stop();
free_records:
	optp_records_free();
	return err;
}
module_init(optp_init);

static void __exit optp_exit(void)
{
	optp_header_withdraw();
	optp_mailbox_stop();
	optp_modules_stop();
	optp_int3_stop();
	optp_census_stop();
	optp_records_free();
}
module_exit(optp_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Lets optpolined on the host make hot indirect calls direct");
