/* require "sym.edit": lines that a person types at a terminal, edited with libedit, on the loop.
 *
 *   open()                editor | nil, err: "invalid" when standard input or output is no terminal; one at a time
 *   editor:read(prompt, cb)
 *                         reads a line; cb(nil, line) without its end, cb(nil, nil) at the end of the input (Ctrl-D on
 *                         an empty line), cb(nil, nil, true) when it was interrupted. The terminal is in its usual mode
 *                         at all other times
 *   editor:interrupt()    gives up the line that is being read; false if there is none
 *   editor:on_complete(fn)
 *                         fn(text) is called for Tab; @text is the line up to the cursor
 *   editor:line()         the line up to the cursor; nil when none is read
 *   editor:insert(text)   at the cursor
 *   editor:show(text)     prints it below the line, and the line again
 *   editor:redraw()       after something else has written to the terminal, or its size or mode has changed
 *   editor:remember(line) adds it to the history, whose last thousand lines can be gone through
 *   editor:close()
 */
#ifndef SYM_CLIENT_EDIT_H
#define SYM_CLIENT_EDIT_H

#include <lua.h>

int luaopen_sym_edit(lua_State *L);

#endif
