// SPDX-License-Identifier: GPL-2.0-or-later
/* The shapes as a kernel module, for objtool to judge. */
#include <linux/init.h>
#include <linux/module.h>

#include "shapes.h"

void shapes_unreachable(void (*fn)(void));
void shapes_unreachable(void (*fn)(void))
{
	fn();
	unreachable();
}

void shapes_bug(void (*fn)(void));
void shapes_bug(void (*fn)(void))
{
	fn();
	BUG();
}

static int __init shapes_init(void)
{
	word sum = 0;

#define RUN(name, ...) sum += shape_##name(0, 1);
	ALL(RUN)
	STATICS(RUN)
	return sum ? 0 : -EINVAL;
}

static void __exit shapes_exit(void)
{
}

module_init(shapes_init);
module_exit(shapes_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Every shape of an indirect call");
