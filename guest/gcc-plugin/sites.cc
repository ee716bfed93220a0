/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pass that makes calls sites. */
#include "gcc-plugin.h"

#include "backend.h"
#include "context.h"
#include "tree.h"
#include "tree-pass.h"
#include "stringpool.h"
#include "attribs.h"
#include "rtl.h"
#include "memmodel.h"
#include "emit-rtl.h"
#include "tm_p.h"
#include "calls.h"
#include "target.h"
#include "diagnostic-core.h"

#include "../include/optpoline_sites.h"
#include "optpoline_plugin.h"

#define SITE_LABEL	".Loptpoline_site_%u"

unsigned int optp_records;

static const struct optp_key no_key = { OPTP_SITES_NO_REG, 0, 0 };

/* Indexed by x86 register number. */
static const char *const thunks[] = {
	"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
	"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
};

static int x86_number(unsigned int regno)
{
	switch (regno) {
	case AX_REG: return 0;
	case CX_REG: return 1;
	case DX_REG: return 2;
	case BX_REG: return 3;
	case SP_REG: return 4;
	case BP_REG: return 5;
	case SI_REG: return 6;
	case DI_REG: return 7;
	default:
		gcc_assert(REX_INT_REGNO_P(regno));
		return regno - R8_REG + 8;
	}
}

/* Return the text of a record, for the caller to free. */
char *optp_record(const struct optp_record_text *record)
{
	optp_records++;
	return xasprintf(OPTP_PUSH_SECTION(OPTP_RECORDS)
			 "\t.long %s - .\n"
			 "\t.long %s%s\n"
			 "\t.byte %d, %d, %d, %u, %u, 0, 0, 0\n"
			 "\t.popsection\n",
			 record->site,
			 record->other ? record->other : "0",
			 record->other ? " - ." : "",
			 record->kind, record->reg, record->key.reg,
			 record->key.shift, record->key.bits);
}

/* __init and __exit code is gone when the daemon comes. */
static bool is_discarded(tree decl)
{
	static const char *const prefixes[] = {
		".init", ".exit", ".meminit", ".memexit",
	};
	const char *section = DECL_SECTION_NAME(decl);

	for (unsigned int i = 0; section && i < ARRAY_SIZE(prefixes); i++)
		if (startswith(section, prefixes[i]))
			return true;
	return false;
}

static bool is_asm(rtx_insn *insn)
{
	return NONJUMP_INSN_P(insn) &&
	       (GET_CODE(PATTERN(insn)) == ASM_INPUT ||
		asm_noperands(PATTERN(insn)) >= 0);
}

/*
 * Whether code follows the call.  None does where the function is noreturn, or
 * behind unreachable(), which tells objtool of one call only: by way of the
 * site's other one the function would run on into the next.
 */
static bool comes_back(rtx_insn *call)
{
	for (rtx_insn *insn = NEXT_INSN(call); insn; insn = NEXT_INSN(insn)) {
		if (BARRIER_P(insn))
			return false;
		if (NOTE_P(insn) &&
		    NOTE_KIND(insn) == NOTE_INSN_SWITCH_TEXT_SECTIONS)
			return false;
		if (LABEL_P(insn))
			return true;
		if (active_insn_p(insn) && !is_asm(insn))
			return true;
	}
	return false;
}

/* The operand of the call: a MEM of the function. */
static rtx called(rtx_insn *call)
{
	return XEXP(get_call_rtx_from(call), 0);
}

/*
 * The x86 number of the register that argument @number of a function arrives
 * in, or -1.  Structs, returned ones too, move arguments from where their
 * number alone would put them: ask gcc.
 */
static int argument_register(tree fntype, unsigned HOST_WIDE_INT number)
{
	function_args_iterator iterator;
	cumulative_args_t arguments;
	CUMULATIVE_ARGS storage;
	tree type;

	INIT_CUMULATIVE_ARGS(storage, fntype, NULL_RTX, NULL_TREE, 0);
	arguments = pack_cumulative_args(&storage);
	if (aggregate_value_p(TREE_TYPE(fntype), fntype))
		targetm.calls.function_arg_advance(arguments,
			function_arg_info(ptr_type_node, true));

	FOREACH_FUNCTION_ARGS(fntype, type, iterator) {
		function_arg_info argument(type, true);
		rtx place;

		apply_pass_by_reference_rules(&storage, argument);
		place = targetm.calls.function_arg(arguments, argument);
		if (!--number)
			return place && REG_P(place) ?
				x86_number(REGNO(place)) : -1;
		targetm.calls.function_arg_advance(arguments, argument);
	}
	gcc_unreachable();
}

/* The operand's expression has the type that the source called through. */
static struct optp_key key_of(rtx_insn *call)
{
	tree expression = MEM_EXPR(called(call));
	unsigned HOST_WIDE_INT number;
	tree attribute, values;
	struct optp_key key;

	if (!expression)
		return no_key;
	attribute = lookup_attribute(OPTP_ATTR_KEY,
				     TYPE_ATTRIBUTES(TREE_TYPE(expression)));
	if (!attribute)
		return no_key;

	values = TREE_VALUE(attribute);
	number = tree_to_uhwi(TREE_VALUE(values));
	key.bits = tree_to_uhwi(TREE_VALUE(TREE_CHAIN(values)));
	key.shift = tree_to_uhwi(TREE_VALUE(TREE_CHAIN(TREE_CHAIN(values))));
	key.reg = argument_register(TREE_TYPE(expression), number);
	if (key.reg < 0)
		error_at(INSN_LOCATION(call),
			 "%qs of argument %wu, which is not passed in a register",
			 OPTP_ATTR_KEY, number);
	return key;
}

/* Make an insn of @text, which is freed; final() wants to know where it stands. */
static rtx text_insn(char *text, rtx_insn *call)
{
	location_t location = INSN_LOCATION(call);
	rtx insn;

	if (LOCATION_LOCUS(location) == UNKNOWN_LOCATION)
		location = DECL_SOURCE_LOCATION(current_function_decl);
	if (LOCATION_LOCUS(location) == UNKNOWN_LOCATION)
		location = BUILTINS_LOCATION;
	insn = gen_rtx_ASM_INPUT_loc(VOIDmode, ggc_strdup(text), location);
	free(text);
	return insn;
}

static char *site_text(unsigned int number, int kind, int reg,
		       struct optp_key key, const char *other)
{
	char *label = xasprintf(SITE_LABEL, number);
	const struct optp_record_text record = { label, other, kind, reg, key };
	char *records = optp_record(&record);
	char *text = concat(label, ":\n", records, NULL);

	free(records);
	free(label);
	return text;
}

/* The compare is given in bytes: gas would take a shorter form of it. */
static void make_inline_site(rtx_insn *call)
{
	const unsigned int number = optp_records;
	const bool tail = SIBLING_CALL_P(call);
	const int reg = x86_number(REGNO(XEXP(called(call), 0)));
	char *site = site_text(number,
			       tail ? OPTP_SITES_INLINE_JMP : OPTP_SITES_INLINE_CALL,
			       reg, key_of(call), NULL);
	char *done = xasprintf(".Loptpoline_done_%u", number);

	emit_insn_before(text_insn(xasprintf(
		"\t.balign 8\n"
		"%s"
		"\t.byte %#x, 0x81, %#x, 0xff, 0xff, 0xff, 0xff\n"
		"\tjne\t.Loptpoline_slow_%u\n"
		"\t%s\t__x86_indirect_thunk_%s\n"
		"%s%s%s"
		".Loptpoline_slow_%u:",
		site, reg < 8 ? 0x48 : 0x49, 0xf8 | (reg & 7), number,
		tail ? "jmp" : "call", thunks[reg],
		tail ? "" : "\tjmp\t", tail ? "" : done, tail ? "" : "\n",
		number), call), call);
	if (!tail)
		emit_insn_after(text_insn(xasprintf("%s:", done), call), call);
	free(site);
	free(done);
}

static void log_static_call(rtx_insn *call)
{
	int kind = SIBLING_CALL_P(call) ? OPTP_SITES_STATIC_JMP : OPTP_SITES_STATIC_CALL;
	char *text = site_text(optp_records, kind, OPTP_SITES_NO_REG, no_key,
			       XSTR(XEXP(called(call), 0), 0));

	emit_insn_before(text_insn(text, call), call);
}

static bool is_indirect(rtx_insn *call)
{
	return REG_P(XEXP(called(call), 0)) &&
	       cfun->machine->indirect_branch_type == indirect_branch_thunk_extern;
}

static bool is_static_call(rtx_insn *call)
{
	rtx address = XEXP(called(call), 0);

	return GET_CODE(address) == SYMBOL_REF && SYMBOL_REF_DECL(address) &&
	       DECL_P(SYMBOL_REF_DECL(address)) &&
	       lookup_attribute(OPTP_ATTR_STATIC_CALL,
				DECL_ATTRIBUTES(SYMBOL_REF_DECL(address)));
}

static bool has_attribute(const char *name)
{
	return lookup_attribute(name, DECL_ATTRIBUTES(current_function_decl));
}

namespace {

const pass_data sites_data = {
	RTL_PASS, "optpoline_sites", OPTGROUP_NONE, TV_NONE, 0, 0, 0, 0, 0,
};

class sites_pass : public rtl_opt_pass {
public:
	sites_pass() : rtl_opt_pass(sites_data, g) {}

	bool gate(function *) final override
	{
		return TARGET_64BIT && !has_attribute(OPTP_ATTR_OFF) &&
		       !is_discarded(current_function_decl);
	}

	unsigned int execute(function *) final override
	{
		bool inlines = !optp_opt_in || has_attribute(OPTP_ATTR_ON);

		for (rtx_insn *insn = get_insns(); insn; insn = NEXT_INSN(insn)) {
			if (!CALL_P(insn))
				continue;
			if (is_static_call(insn))
				log_static_call(insn);
			else if (inlines && is_indirect(insn) &&
				 (SIBLING_CALL_P(insn) || comes_back(insn)))
				make_inline_site(insn);
		}
		return 0;
	}
};

}

void optp_register_pass(const char *plugin)
{
	/* Nothing moves, and no label is deleted, from "shorten" on. */
	struct register_pass_info sites = {
		new sites_pass, "shorten", 1, PASS_POS_INSERT_BEFORE,
	};

	register_callback(plugin, PLUGIN_PASS_MANAGER_SETUP, NULL, &sites);
}
