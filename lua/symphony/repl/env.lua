-- What the code at a prompt finds. Each function's comment, here and in the env_*.lua, is its documentation
-- (symphony.repl.docs): help() shows it, and docs/lua.md is made of it.
local async = require "symphony.async"
local env_calls = require "symphony.repl.env_calls"
local env_cluster = require "symphony.repl.env_cluster"
local env_keys = require "symphony.repl.env_keys"
local env_std = require "symphony.repl.env_std"
local errors = require "symphony.errors"
local heap = require "symphony.repl.heap"
local json = require "symphony.json"
local lazy = require "symphony.lazy"
local show = require "symphony.repl.show"

local complete = lazy "symphony.repl.complete"
local docs = lazy "symphony.repl.docs"
local call = env_calls.call

local M = {}

local GATHERED_MAX = 1000 -- functions
local SLEEP_MAX = 1e9     -- seconds

--- # prompt: for everything
local function general(session, env)
  --- help([x])
  --- Shows what there is, or what x is: a function, a table, or a name. Of a function of the daemon's own modules it
  --- shows the comment that it has in the source.
  ---   help(kv)
  ---   help(require("symphony.cluster.state").read)
  function env.help(x)
    call(function()
      session.out(docs.help(x, function(name)
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

  --- collectgarbage([what]) -> number
  --- "count" is the daemon's memory for Lua in KiB. By default collects what is not used any more, in steps.
  ---   collectgarbage("count") > 0 --> true
  function env.collectgarbage(what)
    if what == "count" then return collectgarbage("count") end
    call(function()
      if what ~= nil and what ~= "collect" then
        errors.raise("invalid", 'collectgarbage takes "count" or "collect": how the daemon collects is its own')
      end
      heap.collect(1000)
    end)
    return 0
  end
end

local function waiting()
  local functions = {}

  --- sleep([seconds])
  --- Waits; others have their turn meanwhile.
  ---   sleep(0.1)
  function functions.sleep(seconds)
    seconds = seconds or 0
    if type(seconds) ~= "number" or not (seconds >= 0 and seconds <= SLEEP_MAX) then
      errors.raise("invalid", "seconds are a number, 0 or more")
    end
    async.sleep(seconds * 1000)
  end

  --- gather(functions) -> results
  --- Runs the functions of a list at once and waits for all: the list of what each returned first. Raises if one does.
  --- At most 1000.
  ---   #gather { function() sleep(0.1) return 1 end, function() sleep(0.1) return 2 end } --> 2
  function functions.gather(list)
    local tasks, results = {}, {}
    if type(list) ~= "table" or #list > GATHERED_MAX then
      errors.raise("invalid", ("gather takes a list of functions, at most %d"):format(GATHERED_MAX))
    end
    for i, fn in ipairs(list) do
      if type(fn) ~= "function" then errors.raise("invalid", ("item %d is no function"):format(i)) end
      tasks[i] = function() return (fn()) end
    end
    for i, outcome in ipairs(async.gather(tasks)) do
      if not outcome.ok then error(outcome.err, 0) end
      results[i] = outcome.results[1]
    end
    return results
  end

  --- watch(prefix, fn)
  --- Calls fn(key, value, revision) for every change of the state. Below that prefix and from now on; value is nil when
  --- the key was removed. Ends when fn returns false, or by Ctrl-C. See state, and kv.watch.
  function functions.watch(prefix, fn)
    return env_keys.watch(prefix, fn, "")
  end
  return env_calls.calls(functions)
end

--- The environment of @session, whose fields out(text), err(text) and note(line) print, and may wait; os.exit sets
--- exit.
function M.new(session)
  local env = env_std.globals(session)
  general(session, env)
  for name, fn in pairs(waiting()) do env[name] = fn end
  env.kv = env_keys.kv(session)
  env.state = env_keys.state(session)
  env.cluster = env_cluster.cluster()
  env.nodes, env.node, env.members = env.cluster.nodes, env.cluster.node, env.cluster.members
  env.events = env.cluster.events

  env.raft = env_cluster.raft()

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

  --- json.nullable(value) -> value
  --- The value; nil where it is json.null.
  ---   json.nullable(json.null) --> nil
  env.json = { encode = json.encode, decode = json.decode, array = json.array, clean = json.clean, null = json.null,
    nullable = json.nullable }
  return env
end

return M
