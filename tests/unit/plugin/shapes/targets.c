// SPDX-License-Identifier: GPL-2.0-or-later
/* What the shapes call: every argument counts, and NAME_1 differs from NAME_0. */
#include "shapes.h"

word register_argument;
struct node nodes[4] = {
	{ nodes + 1, 3 }, { nodes + 2, 5 }, { nodes + 3, 7 }, { (void *)0, 11 },
};

static word mix(word a, word b)
{
	return (a ^ b) * 0x9e3779b97f4a7c15UL + b;
}

/* As many targets as tables, all alike but for the salt. */
#define ONE_WORD(name)							\
	word name##_0(word a) { return mix(a, 2); }			\
	word name##_1(word a) { return mix(a, 3); }

ONE_WORD(plain)
ONE_WORD(memory)
ONE_WORD(returned)
ONE_WORD(loop)
ONE_WORD(nested)
ONE_WORD(twice)
ONE_WORD(branches)
ONE_WORD(in_switch)
ONE_WORD(in_asm)
ONE_WORD(tail)
ONE_WORD(tail_memory)
ONE_WORD(tail_branches)
ONE_WORD(static_call)
ONE_WORD(static_tail)

#define BODY_nine mix(mix(mix(a, b), mix(c, d)), mix(mix(e, f), mix(g, mix(h, i))))
#define BODY_tail_six mix(mix(mix(a, b), mix(c, d)), mix(e, f))

#define TWO(type, name, parameters, result)				\
	type name##_0 parameters { enum { salt = 2 }; result; }		\
	type name##_1 parameters { enum { salt = 3 }; result; }

TWO(word, nine, (word a, word b, word c, word d, word e, word f, word g, word h, word i),
	return mix(BODY_nine, salt))
TWO(word, tail_six, (word a, word b, word c, word d, word e, word f),
	return mix(BODY_tail_six, salt))
TWO(struct pair, pair, (word a), return ((struct pair){ mix(a, salt), a + salt }))
TWO(struct big, big, (word a),
	return ((struct big){ { a, mix(a, salt), 2, 3, 4, 5, 6, 7, mix(salt, a) } }))
TWO(word, by_value, (struct big b, word a), return mix(mix(b.a[0], b.a[8]), a + salt))
TWO(void, nothing, (word *result, word a), *result = mix(a, salt))
TWO(void, tail_nothing, (word *result, word a), *result = mix(a, salt))
TWO(void, static_null, (word *a), *a = mix(*a, salt))
TWO(word, list, (struct node *node), return mix(node->value, salt))
TWO(word, live, (word a, word b), return mix(a, mix(b, salt)))
TWO(unsigned __int128, wide, (word a), return (unsigned __int128)mix(a, salt) << 64 | a)
TWO(word, keyed, (unsigned int key, word a), return mix(a, key + salt))
TWO(word, variadic, (int count, ...), {
	__builtin_va_list list;
	word sum = salt;

	__builtin_va_start(list, count);
	while (count--)
		sum = mix(sum, __builtin_va_arg(list, word));
	__builtin_va_end(list);
	return sum;
})
TWO(word, frame, (word *a, word n), {
	word sum = salt;

	while (n--)
		sum = mix(sum, a[n]);
	return sum;
})

#define REGISTER_TARGET(name, ...) \
	TWO(word, name, (void), return mix(register_argument, salt))
REGISTERS(REGISTER_TARGET)

#define TABLE(name, ...) name##_fn *name##_targets[2] = { name##_0, name##_1 };
ALL(TABLE)
STATICS(TABLE)
