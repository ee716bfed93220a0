/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the two files of the plugin know of each other. */
#ifndef OPTPOLINE_PLUGIN_H
#define OPTPOLINE_PLUGIN_H

/* The attributes' names, as optpoline.h and optpoline_static_call.h use them. */
#define OPTP_ATTR_ON		"optpoline"
#define OPTP_ATTR_OFF		"optpoline_none"
#define OPTP_ATTR_KEY		"optpoline_key"
#define OPTP_ATTR_STATIC_CALL	"optpoline_static_call"
#define OPTP_ATTR_TRAMPOLINE	"optpoline_trampoline"

/* The section's subsections: headers stand before records. */
#define OPTP_HEADER		"0"
#define OPTP_RECORDS		"1"
#define OPTP_PUSH_SECTION(subsection) \
	"\t.pushsection " OPTP_SITES_SECTION "," subsection ",\"a\",@progbits\n"

/* optpoline.cc */
extern bool optp_opt_in;	/* only functions with OPTP_ATTR_ON */

/* sites.cc */
struct optp_key {
	int reg;		/* x86 number, or OPTP_SITES_NO_REG */
	unsigned int shift;
	unsigned int bits;
};

struct optp_record_text {
	const char *site;	/* symbol */
	const char *other;	/* symbol, or NULL */
	int kind;
	int reg;
	struct optp_key key;
};

char *optp_record(const struct optp_record_text *record);
void optp_register_pass(const char *plugin);

extern unsigned int optp_records;	/* in this unit, so far */

#endif /* OPTPOLINE_PLUGIN_H */
