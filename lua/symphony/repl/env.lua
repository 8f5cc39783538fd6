-- What the code at a prompt finds. Each function's comment, here and in the env_*.lua, is its documentation
-- (symphony.repl.docs): help() shows it, and docs/lua.md is made of it.
local async = require "symphony.async"
local env_calls = require "symphony.repl.env_calls"
local env_cluster = require "symphony.repl.env_cluster"
local env_keys = require "symphony.repl.env_keys"
local env_std = require "symphony.repl.env_std"
local heap = require "symphony.repl.heap"
local json = require "symphony.json"
local show = require "symphony.repl.show"

local back, call = env_calls.back, env_calls.call

local M = {}

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
    return call(env_keys.watch, handler, prefix, fn, "")
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
    call(heap.collect, 1000)
    return 0
  end
end

--- The environment of @session, whose fields out(text), err(text) and note(line) print, and may wait; EXIT is what
--- os.exit raises, having set exit. @handler: of errors in the code.
function M.new(session, handler)
  local env = {}
  general(session, env, handler)
  env._G = env
  env.kv = env_keys.kv(session, handler)
  env.state = env_keys.state(session, handler)
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
  env.json = json

  env.os = env_std.os(session)
  env.io = env_std.io(session)
  env.coroutine = env_std.coroutine()
  env.load, env.loadfile, env.dofile = env_std.loaders(env)
  return setmetatable(env, { __index = _G })
end

return M
