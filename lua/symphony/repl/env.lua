-- What the code at a prompt finds: the functions of symphony, and Lua's library with what has to be other here. Each
-- function's comment is its documentation (symphony.repl.docs): help() shows it, and docs/lua.md is made of it.
local async = require "symphony.async"
local errors = require "symphony.errors"
local json = require "symphony.json"
local lazy = require "symphony.lazy"
local show = require "symphony.repl.show"
local sys = require "sym.sys"

local events = lazy "symphony.cluster.events"
local follow = lazy "symphony.cluster.follow"
local limits = lazy "symphony.cluster.kv"
local members = lazy "symphony.cluster.members"
local nodes = lazy "symphony.cluster.nodes"
local state = lazy "symphony.cluster.state"
local store = lazy "sym.store"

local M = {}

local LIST_MAX = 1000                      -- entries in a list,
local KV_BYTES, STATE_BYTES = 1 << 20, 32 << 20 -- and about how many bytes
local EACH_PAGE = 100
local BACKLOG_MAX = 8 << 20                -- of changes that a watch has not taken yet, in bytes
local ANY = { stale = true }

-- Raises what a function returned as nil, err: at a prompt an error should be seen, not lost.
local function must(...)
  local v, err = ...
  if v == nil and err ~= nil then
    error(errors.from(err), 0)
  end
  return ...
end

-- Calls ------------------------------------------------------------------------------------------------------------

-- What a coroutine of the code's own yields when it calls something that may wait: the one that resumes it does it.
local CALL = {}

local function answer(ok, ...)
  if not ok then error((...), 0) end
  return ...
end

-- fn(...), which may wait, without the guard: it is the daemon's, and must not be stopped half-way.
local function call(fn, ...)
  if async.current() then
    return sys.unguarded(fn, ...)
  elseif not coroutine.isyieldable() then
    error("only a task may wait", 3)
  end
  return answer(coroutine.yield(CALL, fn, table.pack(...)))
end

local function resume(co, ...)
  local results = table.pack(coroutine.resume(co, ...))
  while results[1] and results[2] == CALL do
    local args = results[4]
    results = table.pack(coroutine.resume(co, pcall(call, results[3], table.unpack(args, 1, args.n))))
  end
  return table.unpack(results, 1, results.n)
end

local function wrap(fn)
  local co = coroutine.create(fn)
  return function(...)
    return answer(resume(co, ...))
  end
end

-- Every function of @t becomes one that runs without the guard.
local function calls(t)
  for name, fn in pairs(t) do
    t[name] = function(...)
      return call(fn, ...)
    end
  end
  return t
end

-- What the code has given to be called, from where the guard is not on: its results, or its error.
local function back(handler, fn, ...)
  return answer(sys.guarded(handler, fn, ...))
end

-- The state --------------------------------------------------------------------------------------------------------

local ENTRY_FIELDS = { "key", "value", "create_revision", "mod_revision" }

local function plain(entry)
  local copy = {}
  for _, name in ipairs(ENTRY_FIELDS) do
    copy[name] = entry[name]
  end
  return copy
end

local function check_limit(limit)
  if limit ~= nil and (math.type(limit) ~= "integer" or limit < 1) then
    errors.raise("invalid", "limit is a whole number, 1 or more")
  end
  return math.min(limit or LIST_MAX, LIST_MAX)
end

-- A page of what is below @prefix, up to about @max bytes, with a note if there is more. @cut: what is left out of the
-- keys; @name: of the function.
local function page(session, prefix, opts, max, cut, name)
  opts = opts or {}
  local rows, more = must(state.list_raw(prefix, { bytes = max, limit = check_limit(opts.limit),
    after = opts.after and cut .. opts.after }))
  local list, bytes = json.array(), 0
  for i, entry in ipairs(rows) do
    bytes = bytes + #entry.key + #entry.value
    if bytes > max and i > 1 then
      more = true
      break
    end
    list[i] = plain(entry)
    list[i].key = entry.key:sub(#cut + 1)
  end
  if more and #list > 0 then
    session.note(("there are more keys than these %d: %s(%s, { after = %s })"):format(#list, name,
      show.quote(prefix:sub(#cut + 1)), show.quote(list[#list].key)))
  end
  return list
end

local function each(handler, prefix, fn, cut)
  local after, more
  repeat
    local rows
    rows, more = must(state.list_raw(prefix, { after = after, limit = EACH_PAGE, bytes = KV_BYTES }))
    for _, entry in ipairs(rows) do
      after = entry.key
      if back(handler, fn, entry.key:sub(#cut + 1), entry.value) == false then return end
    end
    async.sleep(0)
  until not more
end

local function watch(handler, prefix, fn, cut)
  if type(prefix) ~= "string" or type(fn) ~= "function" then
    errors.raise("invalid", "watch takes a prefix and a function")
  end
  local feed <close> = must(follow.open(cut .. prefix, store.revision(), BACKLOG_MAX, function(change)
    local value = not change.deleted and change.value or nil
    return { key = change.key:sub(#cut + 1), value = value }, #change.key + #(value or "")
  end))
  while true do
    local change, revision = feed:pop()
    if change then
      if back(handler, fn, change.key, change.value, revision) == false then return end
    elseif feed.failed then
      error(errors.from(feed.failed), 0)
    else
      feed.changed:wait()
    end
  end
end

--- # prompt: for everything
local function general(session, env, handler)
  --- help([x])
  --- Shows what there is, or what x is: a function, a table, or a name. Of a function of the daemon's own modules it
  --- shows the comment that it has in the source.
  ---   help(kv)
  ---   help(require("symphony.cluster.state").read)
  function env.help(x)
    local complete = require "symphony.repl.complete"
    call(function()
      session.out(require("symphony.repl.docs").help(x, function(name)
        local path = {}
        for word in name:gmatch("[^.]+") do path[#path + 1] = word end
        return complete.lookup(env, path)
      end) .. "\n")
    end)
  end

  --- print(...)
  --- Prints here, not in the daemon's log. A slow reader slows the code down.
  ---   print("a", 1)
  function env.print(...)
    local texts = table.pack(...)
    for i = 1, texts.n do
      texts[i] = tostring(texts[i])
    end
    call(session.out, table.concat(texts, "\t") .. "\n")
  end

  --- show(value) -> text
  --- A value as text, as the prompt shows it.
  ---   show({ 1, "b" }) == '{\n  1,\n  "b",\n}' --> true
  function env.show(value)
    return show.show(value)
  end

  --- sleep([seconds])
  --- Waits; others have their turn meanwhile.
  ---   sleep(0.1)
  function env.sleep(seconds)
    call(async.sleep, (seconds or 0) * 1000)
  end

  --- gather(functions) -> results
  --- Runs the functions of a list at once and waits for all: the list of what each returned first. Raises if one does.
  ---   #gather { function() sleep(0.1) return 1 end, function() sleep(0.1) return 2 end } --> 2
  function env.gather(functions)
    return call(function()
      local tasks, results = {}, {}
      for i, fn in ipairs(functions) do
        tasks[i] = function() return back(handler, fn) end
      end
      for i, outcome in ipairs(async.gather(tasks)) do
        if not outcome.ok then error(outcome.err, 0) end
        results[i] = outcome.results[1]
      end
      return results
    end)
  end

  --- watch(prefix, fn)
  --- Calls fn(key, value, revision) for every change of the state. Below that prefix and from now on; value is nil when
  --- the key was removed. Ends when fn returns false, or by Ctrl-C. See state, and kv.watch.
  function env.watch(prefix, fn)
    return call(watch, handler, prefix, fn, "")
  end

  --- require(name) -> module
  --- Any module of the daemon.
  ---   require("symphony.cluster.identity").role() --> "manager"
  env.require = require

  --- collectgarbage([what]) -> number
  --- "count" is the daemon's memory for Lua in KiB. By default collects what is not used any more, in steps.
  ---   collectgarbage("count") > 0 --> true
  function env.collectgarbage(what, ...)
    if what ~= nil and what ~= "collect" then return collectgarbage(what, ...) end
    call(function()
      repeat async.sleep(0) until collectgarbage("step", 1000)
    end)
    return 0
  end
end

local function kv_functions(session, handler)
  --- # kv: the users' own keys, as `symphony kv` and the API have them
  --- A key is a text of up to 1024 bytes, a value one of up to 1 MiB.
  local kv = {}
  local function submit(op)
    return must(state.submit { compare = {}, ops = { op } }).revision
  end

  --- kv.get(key) -> entry
  --- The entry of a key: {key, value, create_revision, mod_revision}; nil if there is none.
  ---   kv.put("motd", "hello")
  ---   kv.get("motd").value --> "hello"
  ---   kv.get("no such key") --> nil
  function kv.get(key)
    key = limits.PREFIX .. limits.check_key(key)
    must(state.read())
    local _, entry = must(state.text(key))
    if not entry then return nil end
    entry = plain(entry)
    entry.key = entry.key:sub(#limits.PREFIX + 1)
    return entry
  end

  --- kv.put(key, value) -> revision
  --- Sets a key to a value, which is turned into text. Returns the revision of the state that has it.
  ---   kv.put("count", 1)
  ---   kv.get("count").value --> "1"
  function kv.put(key, value)
    limits.check_key(key)
    return submit { put = limits.PREFIX .. key, value = limits.check_value(tostring(value)) }
  end

  --- kv.rm(key) -> revision
  --- Removes a key; it is no error if there is none.
  ---   kv.rm("count")
  ---   kv.get("count") --> nil
  function kv.rm(key)
    return submit { delete = limits.PREFIX .. limits.check_key(key) }
  end

  --- kv.ls([prefix [, opts]]) -> entries
  --- The entries below a prefix in the order of their keys: at most 1000 and 1 MiB. opts: limit; after, the key from
  --- behind which on.
  ---   kv.put("app/a", "1")
  ---   kv.put("app/b", "2")
  ---   #kv.ls("app/") --> 2
  ---   kv.ls("app/", { after = "app/a" })[1].key --> "app/b"
  function kv.ls(prefix, opts)
    prefix = limits.check_key(prefix or "", true)
    must(state.read())
    return page(session, limits.PREFIX .. prefix, opts, KV_BYTES, limits.PREFIX, "kv.ls")
  end

  --- kv.each(prefix, fn)
  --- Calls fn(key, value) for every key below a prefix, however many, as state.each does.
  ---   kv.each("app/", function(key, value) print(key, value) end)
  function kv.each(prefix, fn)
    must(state.read())
    each(handler, limits.PREFIX .. prefix, fn, limits.PREFIX)
  end

  --- kv.txn(txn) -> revision
  --- Compares and changes in one step: {compare = {...}, ops = {...}} as POST /v1/txn has it. Raises "conflict" if a
  --- compare does not hold: then nothing has changed.
  ---   kv.txn { compare = { { key = "lock", absent = true } }, ops = { { put = "lock", value = "me" } } }
  ---   kv.get("lock").value --> "me"
  function kv.txn(txn)
    return limits.answer(must(state.submit(limits.parse_txn(txn)))).revision
  end

  --- kv.watch(prefix, fn)
--- string, table and utf8 what could keep the daemon busy is bounded: 16 MiB for a text, 1,000,000 items in a call.
  --- Ends when fn returns false, or by Ctrl-C.
  function kv.watch(prefix, fn)
    return watch(handler, prefix, fn, limits.PREFIX)
  end
  return calls(kv)
end

local function state_functions(session, handler)
  --- # state: the whole of the replicated state, as this manager has it now
  --- Under /node/ are the nodes, under /kv/ the users' keys, under /event/ the events; values are text, most are JSON.
  local functions = {}

  --- state.get(key) -> entry
  --- The entry of a key: {key, value, create_revision, mod_revision}; nil if there is none.
  ---   json.decode(state.get("/cluster").value).id == cluster.status().cluster_id --> true
  function functions.get(key)
    local entry = must(store.get(key))
    return entry and plain(entry)
  end

  --- state.list([prefix [, opts]]) -> entries
  --- The entries below a prefix in the order of their keys: at most 1000 and 32 MiB. opts: limit; after, the key from
  --- behind which on.
  ---   #state.list("/node/") == #nodes() --> true
  function functions.list(prefix, opts)
    return page(session, prefix or "", opts, STATE_BYTES, "", "state.list")
  end

  --- state.each(prefix, fn)
  --- Calls fn(key, value) for every key below a prefix, however many. Others have their turn in between: what changes
  --- meanwhile is seen or not. Ends when fn returns false.
  ---   state.each("/node/", function(key, value) print(json.decode(value).name) end)
  function functions.each(prefix, fn)
    each(handler, prefix, fn, "")
  end

  --- state.count([prefix]) -> number
  --- How many keys there are below a prefix.
  ---   state.count("/node/") --> 1
  function functions.count(prefix)
    local count = 0
    must(state.each_raw(prefix or "", function() count = count + 1 end))
    return count
  end

  --- state.revision() -> number
  --- The revision of the state: it is one higher after every change.
  ---   state.revision() >= kv.get("motd").mod_revision --> true
  function functions.revision()
    return must(store.revision())
  end
  return calls(functions)
end

-- The cluster ------------------------------------------------------------------------------------------------------

-- Does @row have all that @want has, tables inside of it too?
local function matches(row, want)
  for name, value in next, want do
    if type(value) == "table" and type(row[name]) == "table" then
      if not matches(row[name], value) then return false end
    elseif row[name] ~= value then
      return false
    end
  end
  return true
end

local function cluster_functions()
  --- # cluster: managers and workers
  local functions = {}

  --- cluster.nodes([want]) -> list
  --- The nodes as `symphony node ls --json` shows them; want: only those with these fields. Also called nodes.
  ---   #nodes { role = "manager", status = "ready" } --> 1
  ---   nodes({ labels = { zone = "a" } }) --> {}
  function functions.nodes(want)
    local list = must(nodes.list(ANY))
    if not want then return list end
    local found = json.array()
    for _, row in ipairs(list) do
      if matches(row, want) then found[#found + 1] = row end
    end
    return found
  end

  --- cluster.node(name) -> node
  --- The node with that name or id, or whose id begins so. Also called node.
  ---   node(nodes()[1].name).role --> "manager"
  function functions.node(name)
    return must(nodes.get(name, (must(state.read(ANY)))))
  end

  --- cluster.members() -> list
  --- The managers as `symphony manager members --json` shows them. Also called members.
  ---   cluster.members()[1].leader --> true
  function functions.members()
    return (must(members.list()))
  end

  --- cluster.leader() -> member
  --- The manager that leads; nil if none is known to.
  ---   cluster.leader().raft_node_id --> 1
  function functions.leader()
    for _, row in ipairs(must(members.list())) do
      if row.leader then return row end
    end
  end

  --- cluster.status() -> status
  --- What `symphony manager status --json` shows.
  ---   cluster.status().voters --> 1
  function functions.status()
    return must(members.overview())
  end

  --- cluster.events([want]) -> list
  --- The last events, oldest first. want: kind, also the word before its dot; node; since, in unix seconds; limit, by
  --- default 100. Also called events.
  ---   events({ kind = "node", limit = 1 })[1].kind --> "node.ready"
  function functions.events(want)
    local copy = { limit = 100 }
    for name, value in next, want or {} do copy[name] = value end
    must(state.read(ANY))
    copy.node_id = events.node_id(copy.node)
    return must(events.list(copy))
  end
  return calls(functions)
end

-- Lua's library ----------------------------------------------------------------------------------------------------

local function forbidden(what, why)
  return function()
    error(what .. " would " .. (why or "stop the daemon"), 2)
  end
end

-- Files of the daemon's machine: they may be without an end, or never answer.
local function io_functions(session)
  local function writer(send)
    return function(first, ...)
      local texts = table.pack(...)
      for i = 1, texts.n do texts[i] = tostring(texts[i]) end
      call(send, table.concat(texts))
      return first
    end
  end
  local stdout = { write = writer(function(text) session.out(text) end), flush = function() end }
  local stderr = { write = writer(function(text) session.err(text) end), flush = function() end }
  local functions = { stdout = stdout, stderr = stderr, write = function(...) return stdout:write(...) end }
  for _, name in ipairs { "read", "lines", "open", "popen", "input", "output", "tmpfile", "close" } do
    functions[name] = forbidden("io." .. name)
  end
  return functions
end

--- # os: Lua's own library, but for what would end or block the daemon
--- print, io.write and io.stderr:write print here; files are read with loadfile and dofile only. In all functions of
--- string, table and utf8 what could keep the daemon busy is bounded: 16 MiB for a text, a million items in one call.
local function os_functions(session)
  local functions = { execute = forbidden "os.execute", setlocale = forbidden("os.setlocale", "change the daemon") }
  --- os.exit([status])
  --- Ends the code, and `symphony lua` with this exit status: a number, true (0) or false (1); by default 0.
  function functions.exit(status)
    if status == nil or status == true then status = 0 elseif status == false then status = 1 end
    session.exit = math.tointeger(status) and math.tointeger(status) & 255 or 1
    error(session.EXIT, 0)
  end
  return setmetatable(functions, { __index = os })
end

local function coroutine_functions()
  local function yield(...)
    if async.current() then error("attempt to yield from outside a coroutine", 2) end
    return coroutine.yield(...)
  end
  return setmetatable({ yield = yield, resume = resume, wrap = wrap }, { __index = coroutine })
end

-- Code that is loaded sees the session's environment too.
local function loaders(env)
  local function load_here(code, name, mode, in_env)
    return load(code, name, mode, in_env == nil and env or in_env)
  end
  --- loadfile(path) -> function
  --- The code of a file on the daemon's machine as a function; nil and an error if it cannot be read.
  local function loadfile_here(path, mode, in_env)
    local text, err = sys.read_file(path, 1 << 20)
    if not text then return nil, tostring(err) end
    return load_here((text:gsub("^#[^\n]*", "")), "@" .. path, mode, in_env)
  end
  --- dofile(path) -> ...
  --- Runs a file of the daemon's machine.
  local function dofile_here(path)
    return assert(loadfile_here(path))()
  end
  return load_here, loadfile_here, dofile_here
end

-- The environment --------------------------------------------------------------------------------------------------

--- The environment of @session, whose fields out(text), err(text) and note(line) print, and may wait; EXIT is what
--- os.exit raises, having set exit. @handler: of errors in the code.
function M.new(session, handler)
  local env = {}
  general(session, env, handler)
  env._G = env
  env.kv = kv_functions(session, handler)
  env.state = state_functions(session, handler)
  env.cluster = cluster_functions()
  env.nodes, env.node, env.members = env.cluster.nodes, env.cluster.node, env.cluster.members
  env.events = env.cluster.events

  --- # raft: consensus among the managers
  env.raft = calls {
    --- raft.status() -> status
    --- This manager's view of raft.
    ---   raft.status().state --> "leader"
    status = function()
      return must(require("sym.raft").status())
    end,
  }

  --- # json: JSON as the API has it

  --- json.encode(value) -> text
  --- Keys are sorted; raises for what JSON cannot hold. json.array makes a list that is [] when it is empty; json.null
  --- stands for null.
  ---   json.encode { b = 1, a = json.array() } --> "{\"a\":[],\"b\":1}"

  --- json.decode(text) -> value
  --- The value; nil and an error for what is not JSON.
  ---   json.decode("[1, 2]")[2] --> 2

  --- json.array([list]) -> list
  --- Makes a list one also in JSON, where an empty table is an object.
  ---   json.encode(json.array()) --> "[]"

  --- json.clean(text) -> text
  --- Text with what is not UTF-8 in it replaced.
  ---   json.clean("a") --> "a"
  env.json = json

  env.os = os_functions(session)
  env.io = io_functions(session)
  env.coroutine = coroutine_functions()
  env.load, env.loadfile, env.dofile = loaders(env)
  return setmetatable(env, { __index = _G })
end

return M
