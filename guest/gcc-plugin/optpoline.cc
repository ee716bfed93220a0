/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A gcc plugin that makes every indirect call of a kernel that is built with
 * retpolines an inline optpoline site, and logs it for the host daemon.
 * ../include/optpoline_sites.h shows the code of a site and its record.
 *
 * How: gcc emits the call to the thunk as it always does.  Right before its
 * assembly is printed, when nothing moves any more, sites.cc puts text in
 * front of each call: the compare, the direct branch with the same thunk as
 * its target, and the record.  The call that gcc prints is the slow path.  An
 * unlearned site therefore does what the call did, whatever gcc decided about
 * registers, arguments and stack, and objtool sees calls that it knows.
 *
 * This file has the plugin's arguments, the attributes that source code may
 * use, and the header of the records.
 */
#include "gcc-plugin.h"
#include "plugin-version.h"

#include "tree.h"
#include "stringpool.h"
#include "attribs.h"
#include "output.h"
#include "options.h"
#include "diagnostic-core.h"

#include "../include/optpoline_sites.h"
#include "optpoline_plugin.h"

int plugin_is_GPL_compatible;
bool optp_opt_in;

/* The trampolines that this unit defines: names of symbols. */
static auto_vec<const char *> trampolines;

static struct plugin_info info = {
	"1",
	"off     change nothing\n"
	"opt-in  sites only in functions with the attribute optpoline\n",
};

/*
 * Kept out of line, so that what the attribute says of a function holds for
 * exactly that function's code.
 */
static tree handle_function(tree *node, tree, tree, int, bool *)
{
	DECL_UNINLINABLE(*node) = 1;
	return NULL_TREE;
}

static tree handle_trampoline(tree *node, tree, tree, int, bool *)
{
	trampolines.safe_push(xstrdup(IDENTIFIER_POINTER(DECL_NAME(*node))));
	return NULL_TREE;
}

/* Argument number @number of a function type, or NULL where it has none. */
static tree argument_type(tree fntype, unsigned HOST_WIDE_INT number)
{
	tree types = TYPE_ARG_TYPES(fntype);

	while (--number && types)
		types = TREE_CHAIN(types);
	return types && TREE_VALUE(types) != void_type_node ?
		TREE_VALUE(types) : NULL_TREE;
}

static bool fits_register(tree type)
{
	return (INTEGRAL_TYPE_P(type) || POINTER_TYPE_P(type)) &&
	       int_size_in_bytes(type) <= UNITS_PER_WORD;
}

static tree handle_key(tree *node, tree, tree args, int, bool *no_add_attrs)
{
	unsigned HOST_WIDE_INT value[3];
	tree type;

	*no_add_attrs = true;
	for (int i = 0; i < 3; i++, args = TREE_CHAIN(args)) {
		if (!tree_fits_uhwi_p(TREE_VALUE(args))) {
			error("%qs takes three constants: argument, bits and shift",
			      OPTP_ATTR_KEY);
			return NULL_TREE;
		}
		value[i] = tree_to_uhwi(TREE_VALUE(args));
	}

	if (value[0] < 1 || value[0] > 6)
		error("%qs of argument %wu: only 1 to 6 are in registers",
		      OPTP_ATTR_KEY, value[0]);
	else if (value[1] < 1 || value[1] > 6)
		error("%qs of %wu bits: a key has 1 to 6",
		      OPTP_ATTR_KEY, value[1]);
	else if (value[2] > 31 - value[1])
		error("%qs of %wu bits from bit %wu on: it must end below bit 31",
		      OPTP_ATTR_KEY, value[1], value[2]);
	else if (!(type = argument_type(*node, value[0])))
		error("%qs of argument %wu, which the prototype does not have",
		      OPTP_ATTR_KEY, value[0]);
	else if (type != error_mark_node && !fits_register(type))
		error("%qs of argument %wu, which is no integer or pointer of up to 64 bits",
		      OPTP_ATTR_KEY, value[0]);
	else
		*no_add_attrs = false;
	return NULL_TREE;
}

/* Name, arguments, of a declaration, a type, a function type; identity; handler. */
static struct attribute_spec attributes[] = {
	{ OPTP_ATTR_ON, 0, 0, true, false, false, false,
	  handle_function, NULL },
	{ OPTP_ATTR_OFF, 0, 0, true, false, false, false,
	  handle_function, NULL },
	{ OPTP_ATTR_KEY, 3, 3, false, true, true, false, handle_key, NULL },
	{ OPTP_ATTR_STATIC_CALL, 0, 0, true, false, false, false, NULL, NULL },
	{ OPTP_ATTR_TRAMPOLINE, 0, 0, true, false, false, false,
	  handle_trampoline, NULL },
};

static void register_attributes(void *, void *)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(attributes); i++)
		register_attribute(&attributes[i]);
}

static void start_unit(void *, void *)
{
	if (flag_lto)
		error("optpoline: %<-flto%> is not supported");
}

static void log_trampolines(void)
{
	const char *name;
	unsigned int i;

	FOR_EACH_VEC_ELT(trampolines, i, name) {
		const struct optp_record_text record = {
			name, NULL, OPTP_SITES_TRAMPOLINE, OPTP_SITES_NO_REG,
			{ OPTP_SITES_NO_REG, 0, 0 },
		};
		char *text = optp_record(&record);

		fputs(text, asm_out_file);
		free(text);
	}
}

/* gas counts the records: what is in the section is what the header says. */
static void finish_unit(void *, void *)
{
	if (seen_error())
		return;
	log_trampolines();
	if (!optp_records)
		return;
	fprintf(asm_out_file,
		OPTP_PUSH_SECTION(OPTP_RECORDS)
		".Loptpoline_end:\n"
		"\t.popsection\n"
		OPTP_PUSH_SECTION(OPTP_HEADER)
		"\t.balign %u\n"
		"\t.type " OPTP_SITES_SYMBOL ", @object\n"
		"\t.size " OPTP_SITES_SYMBOL ", .Loptpoline_end - " OPTP_SITES_SYMBOL "\n"
		OPTP_SITES_SYMBOL ":\n"
		"\t.long %#x\n"
		"\t.short %u, %u\n"
		"\t.long (.Loptpoline_end - .Loptpoline_records) / %u\n"
		"\t.long 0\n"
		".Loptpoline_records:\n"
		"\t.popsection\n",
		(unsigned int)sizeof(struct optp_sites_header),
		OPTP_SITES_MAGIC, OPTP_SITES_VERSION,
		(unsigned int)sizeof(struct optp_sites_record),
		(unsigned int)sizeof(struct optp_sites_record));
}

int plugin_init(struct plugin_name_args *plugin, struct plugin_gcc_version *version)
{
	const char *name = plugin->base_name;
	bool off = false;

	if (!plugin_default_version_check(version, &gcc_version))
		fatal_error(UNKNOWN_LOCATION,
			    "optpoline: built for gcc %s, which is not this gcc %s: build the plugin again",
			    gcc_version.basever, version->basever);

	for (int i = 0; i < plugin->argc; i++) {
		const char *key = plugin->argv[i].key;

		if (!strcmp(key, "off"))
			off = true;
		else if (!strcmp(key, "opt-in"))
			optp_opt_in = true;
		else
			fatal_error(UNKNOWN_LOCATION,
				    "optpoline: unknown argument %qs: there are %qs and %qs",
				    key, "off", "opt-in");
	}

	register_callback(name, PLUGIN_INFO, NULL, &info);
	if (off)
		return 0;
	register_callback(name, PLUGIN_ATTRIBUTES, register_attributes, NULL);
	register_callback(name, PLUGIN_START_UNIT, start_unit, NULL);
	register_callback(name, PLUGIN_FINISH_UNIT, finish_unit, NULL);
	optp_register_pass(name);
	return 0;
}
