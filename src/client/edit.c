#include "client/edit.h"

#include "base/err.h"
#include "lua/vm.h"

#include <histedit.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define TYPE "sym.edit"
#define HISTORY 1000
#define END '\4' /* the end of the input, when characters are read one by one */

/* libedit reads one character at a time (EL_UNBUFFERED), when the loop says that there is one. */
struct edit {
    EditLine *el;
    History *history;
    uv_poll_t *poll; /* freed by its close callback */
    bool reading;
    struct vm_cb done, complete;
    char prompt[64];
};

static struct edit *open_edit; /* whose terminal is to be set right at the end of the program */

static char *prompt_of(EditLine *el)
{
    struct edit *e;
    el_get(el, EL_CLIENTDATA, &e);
    return e->prompt;
}

/* --- a line */

struct line {
    const char *text;
    size_t n;
    bool interrupted;
};

static int push_line(lua_State *L, void *arg)
{
    const struct line *line = arg;
    if (line->text == NULL) {
        lua_pushnil(L);
    } else {
        lua_pushlstring(L, line->text, line->n);
    }
    lua_pushboolean(L, line->interrupted);
    return 2;
}

/* Sets the terminal right. */
static void rest(struct edit *e)
{
    if (e->reading) {
        e->reading = false;
        el_set(e->el, EL_UNBUFFERED, 0);
        uv_poll_stop(e->poll);
    }
}

static void finish(struct edit *e, struct line line)
{
    char *copy = line.text != NULL ? strndup(line.text, line.n) : NULL;
    rest(e);
    el_reset(e->el);
    if (line.text != NULL && copy == NULL) {
        vm_cb_fire(&e->done, err_setf(SYM_ENOMEM, "out of memory"), NULL, NULL);
        return;
    }
    line.text = copy;
    vm_cb_fire(&e->done, 0, push_line, &line);
    free(copy);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct edit *e = poll->data;
    int waiting = 0, n = 0;
    (void)events;
    if (status != 0 || ioctl(STDIN_FILENO, FIONREAD, &waiting) != 0 || waiting == 0) {
        finish(e, (struct line){0}); /* the terminal is gone */
        return;
    }
    const char *text = el_gets(e->el, &n);
    if (!e->reading) {
        return; /* what Tab called has closed it */
    }
    if ((text == NULL && n == 0) || (text != NULL && n == 1 && text[0] == END)) {
        finish(e, (struct line){0});
    } else if (text != NULL && n > 0 && text[n - 1] == '\n') {
        finish(e, (struct line){text, (size_t)n - 1, false});
    }
}

static int push_text(lua_State *L, void *arg)
{
    const struct line *line = arg;
    lua_pushlstring(L, line->text, line->n);
    return 1;
}

static struct line before_cursor(struct edit *e)
{
    const LineInfo *info = el_line(e->el);
    return (struct line){info->buffer, (size_t)(info->cursor - info->buffer), false};
}

static unsigned char on_tab(EditLine *el, wint_t key)
{
    struct edit *e;
    (void)key;
    el_get(el, EL_CLIENTDATA, &e);
    struct line line = before_cursor(e);
    vm_cb_call(&e->complete, 0, push_text, &line);
    return CC_NORM;
}

/* --- methods */

static struct edit *check_edit(lua_State *L)
{
    struct edit *e = luaL_checkudata(L, 1, TYPE);
    luaL_argcheck(L, e->el != NULL, 1, "the editor is closed");
    return e;
}

static int edit_read(lua_State *L)
{
    struct edit *e = check_edit(L);
    const char *prompt = luaL_checkstring(L, 2);
    luaL_argcheck(L, !e->reading, 1, "a line is being read");
    luaL_argcheck(L, strlen(prompt) < sizeof e->prompt, 2, "too long");
    vm_cb_take(L, 3, &e->done);
    snprintf(e->prompt, sizeof e->prompt, "%s", prompt);
    fflush(stdout);
    e->reading = true;
    el_set(e->el, EL_UNBUFFERED, 1);
    int rv = uv_poll_start(e->poll, UV_READABLE, on_readable);
    if (rv != 0) {
        rest(e);
        vm_cb_drop(&e->done);
        return vm_fail(L, err_sysf(rv, "standard input"));
    }
    lua_pushboolean(L, 1);
    return 1;
}

static int edit_interrupt(lua_State *L)
{
    struct edit *e = check_edit(L);
    bool reading = e->reading;
    if (reading) {
        rest(e);
        fputs("^C\n", stdout);
        fflush(stdout);
        finish(e, (struct line){NULL, 0, true});
    }
    lua_pushboolean(L, reading);
    return 1;
}

static int edit_on_complete(lua_State *L)
{
    struct edit *e = check_edit(L);
    vm_cb_drop(&e->complete);
    vm_cb_take(L, 2, &e->complete);
    return 0;
}

static int edit_line(lua_State *L)
{
    struct edit *e = check_edit(L);
    if (!e->reading) {
        return 0;
    }
    struct line line = before_cursor(e);
    return push_text(L, &line);
}

static void redraw(struct edit *e)
{
    if (e->reading) {
        el_set(e->el, EL_REFRESH);
    }
}

static int edit_insert(lua_State *L)
{
    struct edit *e = check_edit(L);
    const char *text = luaL_checkstring(L, 2);
    size_t n = mbstowcs(NULL, text, 0);
    if (!e->reading || n == (size_t)-1 || text[strcspn(text, "\r\n\t")] != '\0') {
        return 0;
    }
    el_push(e->el, text); /* as if it were typed, so that a line of several rows is drawn as it should be */
    for (; n > 0; n--) {
        int length;
        el_gets(e->el, &length);
    }
    return 0;
}

static int edit_show(lua_State *L)
{
    struct edit *e = check_edit(L);
    fprintf(stdout, "\n%s", luaL_checkstring(L, 2));
    fflush(stdout);
    redraw(e);
    return 0;
}

static int edit_redraw(lua_State *L)
{
    struct edit *e = check_edit(L);
    el_resize(e->el);
    if (e->reading) {
        el_set(e->el, EL_PREP_TERM, 1);
        fputc('\r', stdout);
        redraw(e);
    }
    return 0;
}

static int edit_remember(lua_State *L)
{
    struct edit *e = check_edit(L);
    HistEvent event;
    history(e->history, &event, H_ENTER, luaL_checkstring(L, 2));
    return 0;
}

static void on_closed(uv_handle_t *handle)
{
    free(handle);
}

static int edit_close(lua_State *L)
{
    struct edit *e = luaL_checkudata(L, 1, TYPE);
    if (e->el == NULL) {
        return 0;
    }
    rest(e);
    open_edit = NULL;
    el_end(e->el);
    history_end(e->history);
    e->el = NULL;
    uv_close((uv_handle_t *)e->poll, on_closed);
    vm_cb_drop(&e->done);
    vm_cb_drop(&e->complete);
    return 0;
}

/* --- opening */

static void at_exit(void)
{
    if (open_edit != NULL) {
        rest(open_edit);
    }
}

static int open_poll(struct edit *e, uv_loop_t *loop)
{
    e->poll = malloc(sizeof *e->poll);
    if (e->poll == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    int rv = uv_poll_init(loop, e->poll, STDIN_FILENO);
    if (rv != 0) {
        free(e->poll);
        return err_sysf(rv, "standard input");
    }
    e->poll->data = e;
    return 0;
}

static int open_libedit(struct edit *e)
{
    HistEvent event;
    setlocale(LC_CTYPE, "");
    e->history = history_init();
    if (e->history == NULL) {
        return err_setf(SYM_ENOMEM, "out of memory");
    }
    e->el = el_init("symphony", stdin, stdout, stderr);
    if (e->el == NULL) {
        history_end(e->history);
        return err_setf(SYM_EINVAL, "this terminal cannot be used to edit lines");
    }
    history(e->history, &event, H_SETSIZE, HISTORY);
    history(e->history, &event, H_SETUNIQUE, 1);
    el_set(e->el, EL_CLIENTDATA, e);
    el_set(e->el, EL_PROMPT, prompt_of);
    el_set(e->el, EL_EDITOR, "emacs");
    el_set(e->el, EL_SIGNAL, 0);
    el_set(e->el, EL_HIST, history, e->history);
    /* Wide, as libedit makes copies of other texts, and forgets them. */
    el_wset(e->el, EL_ADDFN, L"symphony-complete", L"asks the daemon what may follow", on_tab);
    el_set(e->el, EL_BIND, "\t", "symphony-complete", NULL);
    el_set(e->el, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_source(e->el, NULL); /* what the person is used to, from ~/.editrc */
    return 0;
}

static int l_open(lua_State *L)
{
    static bool registered;
    if (open_edit != NULL || !isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)) {
        return vm_fail(L, err_setf(SYM_EINVAL, "lines are edited at a terminal, by one"));
    }
    struct edit *e = lua_newuserdatauv(L, sizeof *e, 0);
    *e = (struct edit){0};
    luaL_setmetatable(L, TYPE);
    int rv = open_poll(e, vm_loop(L));
    if (rv != 0) {
        return vm_fail(L, rv);
    }
    rv = open_libedit(e);
    if (rv != 0) {
        e->el = NULL;
        uv_close((uv_handle_t *)e->poll, on_closed);
        return vm_fail(L, rv);
    }
    open_edit = e;
    if (!registered) {
        registered = true;
        atexit(at_exit);
    }
    return 1;
}

int luaopen_sym_edit(lua_State *L)
{
    static const luaL_Reg methods[] = {
        {"read", edit_read},
        {"interrupt", edit_interrupt},
        {"on_complete", edit_on_complete},
        {"line", edit_line},
        {"insert", edit_insert},
        {"show", edit_show},
        {"redraw", edit_redraw},
        {"remember", edit_remember},
        {"close", edit_close},
        {NULL, NULL},
    };
    static const luaL_Reg functions[] = {{"open", l_open}, {NULL, NULL}};
    if (luaL_newmetatable(L, TYPE)) {
        luaL_newlib(L, methods);
        lua_setfield(L, -2, "__index");
        lua_pushcfunction(L, edit_close);
        lua_setfield(L, -2, "__gc");
    }
    luaL_newlib(L, functions);
    return 1;
}
