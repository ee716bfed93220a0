/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What optpoline.ko and the host daemon share.
 *
 * The module publishes one page-aligned struct optp_header in its data.  The
 * daemon finds that page from outside by walking the guest's page tables, and
 * reaches everything else through it.  Unless a field says otherwise, the
 * module writes it once before it writes the magic, and the host only reads.
 *
 * Every address is a kernel-virtual address of the guest.  A "percpu offset"
 * is the value of a __percpu pointer: the copy of CPU c is at
 * offset + __per_cpu_offset[c], and code reaches its own CPU's copy as
 * %gs:offset.
 *
 * daemon/optpolined/kernel/module/abi.py mirrors this file; a test compares the
 * mirror with the DWARF of the built module.  Change both, and the version.
 */
#ifndef OPTPOLINE_ABI_H
#define OPTPOLINE_ABI_H

#ifdef __KERNEL__
#include <linux/types.h>
#endif

#define OPTP_MAGIC		"optpoline-header"	/* 16 bytes, no NUL */
#define OPTP_MAGIC_SIZE		16
#define OPTP_ABI_VERSION	4

#define OPTP_NR_REGS		16	/* indexed by x86 register number */
#define OPTP_RECORD_SLOTS	7
#define OPTP_RECORDS_PER_CHUNK	512	/* 32 KiB: the largest percpu allocation */
#define OPTP_MODULE_NAME_LEN	56
#define OPTP_THUNK_HEAD		5	/* bytes: a call, or the jmp to a census stub */

#ifndef __ASSEMBLY__

/*
 * What one CPU saw at one site: 64 bytes, one cache line.
 *
 * A slot belongs to the first target that claims it, until the host clears
 * the record, into which nothing counts any more.  @target holds the low
 * half of the address: kernel and modules share the top 2 GiB, so it extends
 * by sign.  Zero is a free slot.  Counts wrap; the host works with
 * differences.
 */
struct optp_slot {
	__u32 target;
	__u32 count;
};

struct optp_record {
	struct optp_slot slots[OPTP_RECORD_SLOTS];
	__u32 other;		/* calls whose target found no slot */
	__u32 hits;		/* direct calls, in blocks that count them */
};

/*
 * How often one CPU saw one pair of return address and target in a census.
 *
 * A slot belongs to the first pair that claims it, until the host has all slots
 * cleared.  @key holds the low half of the return address in its high half, and
 * that of the target in its low one; both extend by sign.  Zero is a free slot.
 */
struct optp_census_slot {
	__u64 key;
	__u64 count;
};

/*
 * What an int3 at a site means.
 *
 * An inline site has two entries: OPTP_SITE_COMPARE for the cmp in front, whose
 * slow_path is the site's slow call, and OPTP_SITE_BRANCH for the direct branch
 * OPTP_INLINE_BRANCH bytes after it, where no 0xCC of ours ever stands.  Static
 * calls, and the trampoline of each, have kinds of their own because the host
 * tells by them what may stand there.
 */
enum optp_site_kind {
	OPTP_SITE_CALL = 1,		/* push site + length, go to slow_path */
	OPTP_SITE_JMP = 2,		/* go to slow_path */
	OPTP_SITE_COMPARE = 3,		/* go to slow_path */
	OPTP_SITE_BRANCH = 4,		/* never armed */
	OPTP_SITE_STATIC_CALL = 5,	/* as OPTP_SITE_CALL */
	OPTP_SITE_STATIC_JMP = 6,	/* as OPTP_SITE_JMP */
};

#define OPTP_INLINE_BRANCH	9	/* bytes: cmp $imm32, %reg and jne rel8 */

enum optp_poke_state {
	OPTP_POKE_IDLE = 0,	/* no 0xCC of ours stands there */
	OPTP_POKE_ARMED = 1,	/* the host is changing the site */
	OPTP_POKE_GONE = 2,	/* the site has gone with its module */
};

/*
 * One site that the host has ever patched: what the int3 handler needs, and
 * what a new daemon needs to put the site back.  The host writes it; the module
 * only marks those GONE whose code is about to be freed, because other code may
 * be loaded there.
 *
 * The table is a hash with open addressing: an entry stands in the first free
 * place from (site * OPTP_POKE_HASH) >> (64 - order) on, where the capacity
 * is 1 << order.  An entry is never taken out.
 */
#define OPTP_POKE_HASH	0x9e3779b97f4a7c15ULL

struct optp_poke_entry {
	__u64 site;		/* first byte of the instruction; 0: free */
	__u64 slow_path;	/* the thunk, for a retpoline site */
	__u8 kind;		/* enum optp_site_kind */
	__u8 state;		/* enum optp_poke_state */
	__u8 length;		/* bytes of the instruction, at most 8 */
	__u8 reserved[5];
	__u8 original[8];	/* the instruction before the first poke */
};

/* Per-CPU, at the percpu offset header.cpu_stats. */
struct optp_cpu_stats {
	__u64 int3_hits;	/* sent down the slow path */
	__u64 int3_late;	/* the 0xCC was gone: executed again */
};

/*
 * A module, as the last OPTP_REQUEST_MODULES found it.  One whose init still
 * runs has a name and nothing else.
 */
struct optp_module {
	__u8 name[OPTP_MODULE_NAME_LEN];	/* NUL-terminated */
	__u64 text;
	__u64 text_size;	/* bytes */
	__u64 symtab;		/* Elf64_Sym[nr_symbols] */
	__u64 strtab;
	__u32 nr_symbols;
	__u32 reserved;
};

enum optp_request {
	/* synchronize_rcu_tasks_rude(), then synchronize_rcu_tasks() */
	OPTP_REQUEST_GRACE = 1,
	/* every CPU has executed a serialising instruction */
	OPTP_REQUEST_SYNC = 2,
	/* fill header.modules */
	OPTP_REQUEST_MODULES = 3,
	/* take, and drop, the one reference that keeps the module loaded */
	OPTP_REQUEST_HOLD = 4,
	OPTP_REQUEST_RELEASE = 5,
	/* empty the slots of the census; -EBUSY during one */
	OPTP_REQUEST_CENSUS_CLEAR = 6,
};

struct optp_header {
	__u8 magic[OPTP_MAGIC_SIZE];	/* written last */
	__u32 abi_version;
	__u32 header_size;		/* sizeof(struct optp_header) */
	__u64 self;			/* the address of this header */
	__u64 boot_nonce;		/* random, one for each load */

	__u64 vmcoreinfo_paddr;		/* guest-physical, of the ELF note */
	__u64 vmcoreinfo_size;		/* bytes */

	__u64 module_text;		/* this module's own code, arena included */
	__u64 module_text_size;
	__u64 arena;			/* executable; only the host writes it */
	__u64 arena_size;

	__u64 poke_table;		/* struct optp_poke_entry[1 << poke_order] */
	__u32 poke_order;
	__u32 poke_entry_size;

	__u64 per_cpu_offset;		/* the kernel's __per_cpu_offset[] */
	__u32 nr_cpu_ids;
	__u32 nr_record_chunks;
	__u64 record_chunks;		/* __u64[nr_record_chunks]: percpu offsets */
	__u32 records_per_chunk;
	__u32 record_size;
	__u64 cpu_stats;		/* percpu offset */

	/* By register number; zero for rsp, which has no thunk. */
	__u64 thunk[OPTP_NR_REGS];
	__u64 learn_stub[OPTP_NR_REGS];
	__u64 census_stub[OPTP_NR_REGS];
	__u8 thunk_head[OPTP_NR_REGS][8];	/* the first instruction, at load */

	__u64 census_chunks;		/* __u64[nr_census_chunks]: percpu offsets */
	__u64 census_other;		/* percpu offset of a __u64: found no slot */
	__u32 nr_census_chunks;
	__u32 census_chunk_slots;	/* struct optp_census_slot in a chunk */

	__u64 modules;			/* struct optp_module[modules_capacity] */
	__u32 modules_capacity;
	__u32 modules_count;		/* filled by the last request */
	__u32 modules_generation;	/* changes when a module comes or goes */
	__u32 held;			/* 1 between HOLD and RELEASE */

	/*
	 * The mailbox.  The host writes op, then seq; the module serves it,
	 * writes result (0 or -errno), then done_seq = seq.
	 */
	__u32 request_op;		/* host: enum optp_request */
	__u32 request_seq;		/* host */
	__s32 request_result;
	__u32 request_done_seq;
};

#endif /* !__ASSEMBLY__ */
#endif /* OPTPOLINE_ABI_H */
