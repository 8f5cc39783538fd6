-- What the code at a prompt finds for nodes: cluster, raft.
local env_calls = require "symphony.repl.env_calls"
local json = require "symphony.json"
local lazy = require "symphony.lazy"

local events = lazy "symphony.cluster.events"
local members = lazy "symphony.cluster.members"
local nodes = lazy "symphony.cluster.nodes"
local state = lazy "symphony.cluster.state"
local calls, check, must = env_calls.calls, env_calls.check, env_calls.must

local M = {}

local ANY = { stale = true }
local WANTED = { kind = "string", node = "string", since = "number", limit = "number" } -- of events

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

function M.cluster()
  --- # cluster: managers and workers
  local functions = {}

  --- cluster.nodes([want]) -> list
  --- The nodes as `symphony node ls --json` shows them; want: only those with these fields. Also called nodes.
  ---   #nodes { role = "manager", status = "ready" } --> 1
  ---   nodes({ labels = { zone = "a" } }) --> {}
  function functions.nodes(want)
    if want ~= nil then check(want, "table", "want") end
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
    check(name, "string", "a name")
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
    if want ~= nil then check(want, "table", "want") end
    for name, value in next, want or {} do
      if WANTED[name] then check(value, WANTED[name], name) end
      copy[name] = value
    end
    must(state.read(ANY))
    copy.node_id = events.node_id(copy.node)
    return must(events.list(copy))
  end
  return calls(functions)
end

function M.raft()
  --- # raft: consensus among the managers
  local functions = {}

  --- raft.status() -> status
  --- This manager's view of raft.
  ---   raft.status().state --> "leader"
  function functions.status()
    return must(require("sym.raft").status())
  end
  return calls(functions)
end

return M
