-- What the code at a prompt finds for keys: kv, state, and watches of them.
local async = require "symphony.async"
local env_calls = require "symphony.repl.env_calls"
local errors = require "symphony.errors"
local json = require "symphony.json"
local lazy = require "symphony.lazy"
local show = require "symphony.repl.show"

local follow = lazy "symphony.cluster.follow"
local limits = lazy "symphony.cluster.kv"
local state = lazy "symphony.cluster.state"
local store = lazy "sym.store"
local calls, check, must = env_calls.calls, env_calls.check, env_calls.must

local M = {}

local LIST_MAX = 1000 -- entries in a list,
local KV_BYTES, STATE_BYTES = 1 << 20, 32 << 20 -- and about how many bytes
local TURN = 100 -- keys or changes in a row, before others have a turn
local BACKLOG_MAX = 8 << 20 -- bytes of changes that a watch has not taken yet

local TEXTUAL = { string = true, number = true, boolean = true }
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

-- @opts of a list, with nothing else in it.
local function check_opts(opts)
  if opts == nil then return { limit = LIST_MAX } end
  check(opts, "table", "opts")
  if opts.after ~= nil then check(opts.after, "string", "after") end
  return { limit = check_limit(opts.limit), after = opts.after }
end

local function check_prefix(prefix)
  if prefix == nil then return "" end
  check(prefix, "string", "a prefix")
  return prefix
end

-- A page of what is below @prefix, up to about @max bytes, with a note if there is more. @opts: as check_opts gives
-- them; @cut: what is left out of the keys; @name: of the function.
local function page(session, prefix, opts, max, cut, name)
  local rows, more = must(state.list_raw(prefix, { bytes = max, limit = opts.limit,
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

local function check_function(fn)
  if type(fn) ~= "function" then errors.raise("invalid", "a function is needed, to be called") end
end

local function each(prefix, fn, cut)
  local after, more
  repeat
    local rows
    rows, more = must(state.list_raw(prefix, { after = after, limit = TURN, bytes = KV_BYTES }))
    for _, entry in ipairs(rows) do
      after = entry.key
      if fn(entry.key:sub(#cut + 1), entry.value) == false then return end
    end
    async.sleep(0)
  until not more
end

--- Calls @fn for the changes below @prefix of the keys, of which @cut is left out, until it returns false. In a task.
function M.watch(prefix, fn, cut)
  check_function(fn)
  check(prefix, "string", "a prefix")
  must(state.ready())
  local feed <close> = must(follow.open(cut .. prefix, store.revision(), BACKLOG_MAX, function(change)
    local value = not change.deleted and change.value or nil
    return { key = change.key:sub(#cut + 1), value = value }, #change.key + #(value or "")
  end))
  local n = 0
  while true do
    local change, revision = feed:pop()
    if change then
      if fn(change.key, change.value, revision) == false then return end
      n = n + 1
      if n % TURN == 0 then async.sleep(0) end
    elseif feed.failed then
      error(errors.from(feed.failed), 0)
    else
      feed.changed:wait()
    end
  end
end

function M.kv(session)
  --- # kv: the users' own keys, as `symphony kv` and the API have them
  --- A key is a text of up to 1024 bytes, a value one of up to 1 MiB.
  local kv = {}
  -- Every change goes this way: {revision}.
  local function change(txn)
    must(state.ready())
    return limits.answer(must(state.submit(txn)))
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
  --- Sets a key to a value: text, or a number, true or false, which are turned into it. Returns the revision of the
  --- state that has it.
  ---   kv.put("count", 1)
  ---   kv.get("count").value --> "1"
  function kv.put(key, value)
    limits.check_key(key)
    if not TEXTUAL[type(value)] then
      errors.raise("invalid", "a value is text, a number, true or false", "json.encode makes text of a table")
    end
    local put = { put = limits.PREFIX .. key, value = limits.check_value(tostring(value)) }
    return change({ compare = {}, ops = { put } }).revision
  end

  --- kv.rm(key) -> revision
  --- Removes a key; it is no error if there is none.
  ---   kv.rm("count")
  ---   kv.get("count") --> nil
  function kv.rm(key)
    return change({ compare = {}, ops = { { delete = limits.PREFIX .. limits.check_key(key) } } }).revision
  end

  --- kv.ls([prefix [, opts]]) -> entries
  --- The entries below a prefix in the order of their keys: at most 1000 and 1 MiB. opts: limit; after, the key from
  --- behind which on.
  ---   kv.put("app/a", "1")
  ---   kv.put("app/b", "2")
  ---   #kv.ls("app/") --> 2
  ---   kv.ls("app/", { after = "app/a" })[1].key --> "app/b"
  function kv.ls(prefix, opts)
    prefix, opts = limits.check_key(prefix == nil and "" or prefix, true), check_opts(opts)
    must(state.read())
    return page(session, limits.PREFIX .. prefix, opts, KV_BYTES, limits.PREFIX, "kv.ls")
  end

  --- kv.each(prefix, fn)
  --- Calls fn(key, value) for every key below a prefix, however many, as state.each does.
  ---   kv.each("app/", function(key, value) print(key, value) end)
  function kv.each(prefix, fn)
    check_function(fn)
    prefix = limits.PREFIX .. limits.check_key(prefix, true)
    must(state.read())
    each(prefix, fn, limits.PREFIX)
  end

  --- kv.txn(txn) -> revision
  --- Compares and changes in one step: {compare = {...}, ops = {...}} as POST /v1/txn has it. Raises "conflict" if a
  --- compare does not hold: then nothing has changed.
  ---   kv.txn { compare = { { key = "lock", absent = true } }, ops = { { put = "lock", value = "me" } } }
  ---   kv.get("lock").value --> "me"
  function kv.txn(txn)
    return change(limits.parse_txn(txn)).revision
  end

  --- kv.watch(prefix, fn)
  --- Calls fn(key, value, revision) for every change below a prefix. From now on; value is nil when the key was
  --- removed. Ends when fn returns false, or by Ctrl-C.
  function kv.watch(prefix, fn)
    return M.watch(prefix, fn, limits.PREFIX)
  end
  return calls(kv)
end

function M.state(session)
  --- # state: the whole of the replicated state, as this manager has it now
  --- Under /node/ are the nodes, under /kv/ the users' keys, under /event/ the events; values are text, most are JSON.
  local functions = {}

  --- state.get(key) -> entry
  --- The entry of a key: {key, value, create_revision, mod_revision}; nil if there is none.
  ---   json.decode(state.get("/cluster").value).id == cluster.status().cluster_id --> true
  function functions.get(key)
    check(key, "string", "a key")
    must(state.ready())
    local entry = must(store.get(key))
    return entry and plain(entry)
  end

  --- state.list([prefix [, opts]]) -> entries
  --- The entries below a prefix in the order of their keys: at most 1000 and 32 MiB. opts: limit; after, the key from
  --- behind which on.
  ---   #state.list("/node/") == #nodes() --> true
  function functions.list(prefix, opts)
    prefix, opts = check_prefix(prefix), check_opts(opts)
    must(state.ready())
    return page(session, prefix, opts, STATE_BYTES, "", "state.list")
  end

  --- state.each(prefix, fn)
  --- Calls fn(key, value) for every key below a prefix, however many. Others have their turn in between: what changes
  --- meanwhile is seen or not. Ends when fn returns false.
  ---   state.each("/node/", function(key, value) print(json.decode(value).name) end)
  function functions.each(prefix, fn)
    check_function(fn)
    check(prefix, "string", "a prefix")
    must(state.ready())
    each(prefix, fn, "")
  end

  --- state.count([prefix]) -> number
  --- How many keys there are below a prefix.
  ---   state.count("/node/") --> 1
  function functions.count(prefix)
    prefix = check_prefix(prefix)
    must(state.ready())
    local count = 0
    must(state.each_raw(prefix, function() count = count + 1 end))
    return count
  end

  --- state.revision() -> number
  --- The revision of the state: it is one higher after every change.
  ---   state.revision() >= kv.get("motd").mod_revision --> true
  function functions.revision()
    must(state.ready())
    return must(store.revision())
  end
  return calls(functions)
end

return M
