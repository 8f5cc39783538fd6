--- One conversation with the daemon: an environment that lives from line to line, and the running of a chunk in it.
local async = require "symphony.async"
local errors = require "symphony.errors"
local json = require "symphony.json"
local show = require "symphony.repl.show"
local sys = require "sym.sys"

local M = {}

local HELP = [[
The code runs in the daemon. What waits looks like a plain call.
  state.get(key)             an entry of the replicated state, as this manager has it
  state.list(prefix, opts)   the entries below a prefix; opts: after, limit
  kv.get(key) kv.put(key, value) kv.rm(key)
                             the users' own keys, as through the API
  kv.ls(prefix, opts)        those below a prefix, at most 1000 and 1 MiB; opts: after, limit
  members()                  the managers, as in `symphony manager members`
  raft.status()              this manager's view of raft
  json.encode(v) json.decode(text)
  sleep(seconds)             waits
  print(...)                 prints here
  show(v)                    a value as text
  require(name)              any module of the daemon, such as symphony.cluster.state
A value is printed by naming it; _ is the last one. A line that is not finished asks for more.
Lua code that keeps the daemon busy for more than 200 ms without waiting is stopped; one long call of a
library function, such as a pattern that backtracks, is not.]]

local ENTRY_FIELDS = { key = true, value = true, create_revision = true, mod_revision = true }

local function plain(entry)
  local copy = {}
  for k in pairs(ENTRY_FIELDS) do
    copy[k] = entry[k]
  end
  return copy
end

-- Raises what a function returned as nil, err: at a prompt an error should be seen, not lost.
local function must(...)
  local v, err = ...
  if v == nil and err ~= nil then
    error(errors.from(err), 0)
  end
  return ...
end

local function users_key(key)
  if type(key) ~= "string" or key == "" then
    errors.raise("invalid", "a key is a string that is not empty")
  end
  return "/kv/" .. key
end

local LIST_MAX, LIST_BYTES = 1000, 1 << 20 -- a page of keys: what is printed in one turn

local function kv_functions(session)
  local function state()
    return require "symphony.cluster.state"
  end
  local function submit(op)
    local result = must(state().submit { compare = {}, ops = { op } })
    return result.revision
  end
  local function strip(entry)
    entry = plain(entry)
    entry.key = entry.key:sub(#"/kv/" + 1)
    return entry
  end
  return {
    get = function(key)
      key = users_key(key)
      must(state().read())
      local _, entry = must(state().text(key))
      return entry and strip(entry)
    end,
    put = function(key, value)
      return submit { put = users_key(key), value = tostring(value) }
    end,
    rm = function(key)
      return submit { delete = users_key(key) }
    end,
    ls = function(prefix, opts)
      prefix, opts = prefix or "", opts or {}
      local limit = opts.limit or LIST_MAX
      if math.type(limit) ~= "integer" or limit < 1 then
        errors.raise("invalid", "limit is a whole number, 1 or more")
      end
      must(state().read())
      local rows, more = must(state().list_raw("/kv/" .. prefix, { bytes = LIST_BYTES,
        limit = math.min(limit, LIST_MAX), after = opts.after and users_key(opts.after) }))
      local list, bytes = json.array(), 0
      for i, entry in ipairs(rows) do
        bytes = bytes + #entry.key + #entry.value
        if bytes > LIST_BYTES and i > 1 then
          more = true
          break
        end
        list[i] = strip(entry)
      end
      if more and #list > 0 then
        session.note(("there are more keys than these %d: kv.ls(%s, { after = %s })"):format(#list, show.quote(prefix),
          show.quote(list[#list].key)))
      end
      return list
    end,
  }
end

-- No message handler of the user's runs where the hook that guards the loop does not reach, and no finalizer.
local function bounded_xpcall(fn, handler, ...)
  local results = table.pack(pcall(fn, ...))
  if results[1] then
    return table.unpack(results, 1, results.n)
  end
  return false, handler(results[2])
end

local function bounded_setmetatable(t, mt)
  if type(mt) == "table" and rawget(mt, "__gc") ~= nil then
    error("a finalizer cannot be bounded: not here", 2)
  end
  return setmetatable(t, mt)
end

local function forbidden(what)
  return function()
    error(what .. " would stop the daemon", 2)
  end
end

local function environment(session)
  local env = {
    help = function()
      session.print(HELP)
    end,
    print = function(...)
      local texts = table.pack(...)
      for i = 1, texts.n do
        texts[i] = tostring(texts[i])
      end
      session.print(table.concat(texts, "\t"))
    end,
    show = show.show,
    json = json,
    async = async,
    sleep = function(seconds)
      async.sleep((seconds or 0) * 1000)
    end,
    state = {
      get = function(key)
        local entry = must(require("sym.store").get(key))
        return entry and plain(entry)
      end,
      list = function(prefix, opts)
        opts = opts or {}
        local list, after, more = json.array(), opts.after, true
        while more and #list < (opts.limit or math.huge) do
          local page
          page, more = must(require("sym.store").list(prefix or "",
            { after = after, limit = opts.limit and opts.limit - #list }))
          for _, entry in ipairs(page) do
            list[#list + 1], after = plain(entry), entry.key
          end
        end
        return list
      end,
    },
    raft = {
      status = function()
        return must(require("sym.raft").status())
      end,
    },
    members = function()
      return must(require("symphony.cluster.members").list())
    end,
    kv = kv_functions(session),
    xpcall = bounded_xpcall,
    setmetatable = bounded_setmetatable,
    os = setmetatable({ exit = forbidden "os.exit", execute = forbidden "os.execute" }, { __index = os }),
    io = setmetatable({ read = forbidden "io.read", popen = forbidden "io.popen" }, { __index = io }),
  }
  return setmetatable(env, { __index = _G })
end

--- A session; where it prints is said at every eval.
function M.new()
  local session = {}
  session.env = environment(session)
  return session
end

--- The function of @code: as an expression, else as statements. nil, err; nil, err, true if the code is not finished.
local function compile(code, name, env)
  local fn = load("return " .. code, name, "t", env)
  if fn then
    return fn
  end
  local err
  fn, err = load(code, name, "t", env)
  if fn then
    return fn
  end
  return nil, errors.new("syntax", err), err:match("<eof>$") ~= nil
end

-- The traceback without what is below the user's code.
local function handler(v)
  local text = type(v) == "string" and v or errors.is(v) and ("%s (%s)"):format(v.message, v.code)
    or ("(the error is a %s)"):format(type(v))
  local trace = debug.traceback(text, 2):gsub("\n%s*%[C%]: in function 'sym%.sys%.guarded'.*", "")
  local err = errors.is(v) and v or { code = "error" }
  return { code = err.code, message = text, hint = err.hint, trace = trace }
end

--- Runs @code in @session; @opts: name of the chunk, args for its `...`, print(text) and note(text), for one line
--- without its end; a note is not part of what the code prints. Must be in a task. Returns
--- {n =, values...}; or nil, {code, message, trace}; or nil, err, true if more input could complete the code.
function M.eval(session, code, opts)
  session.print, session.note = opts.print, opts.note or opts.print
  local fn, err, more = compile(code, opts.name or "=lua", session.env)
  if not fn then
    return nil, err, more
  end
  local results = table.pack(sys.guarded(handler, fn, table.unpack(opts.args or {})))
  if not results[1] then
    return nil, results[2]
  end
  if results.n > 1 then
    session.env._ = results[2]
  end
  return table.move(results, 2, results.n, 1, { n = results.n - 1 })
end

return M
