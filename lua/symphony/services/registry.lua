--- The cloud services that this daemon knows. A service is a table:
---   kind         its name: a worker that has it says so, and `symphony KIND ...` are its commands
---   summary      in one line, for people
---   resources    kind of resource -> {schema =, summary =, and, where it differs, any of those below}
---   validate     function(spec, old) -> true, or nil, why not: what a schema cannot say. old: the spec of before
---   place        function(resource, candidates, ctx) -> node ids, best first; nil: the default, those with least to
---                do. Runs on the leader, must not wait. candidates: {{node_id, name, labels, services, load}, ...}
---   placed       false: its resources are records, and nobody's work
---   rollout      "all" (default): a new spec goes to all nodes at once; "rolling": to one after the other, each
---                once that before it is "running"
---   move         "stop-first" (default): what leaves a node is taken from it as it is given to another;
---                "start-first": once it is "running" there
---   reconcile    function(ctx, desired, actual) -> status | nil, err: on the worker, in a task: makes it so. desired:
---                {kind, id, uid, generation, spec, data}, nil: it is to be gone. actual: what actual() says of it, or
---                nil. status: {state = "running", message =, detail = {...}}
---   actual       function(ctx) -> {[id] = anything}: what of this kind is here. Nothing may be forgotten: what is not
---                assigned any more is reconciled with desired = nil, also after a restart
---   decide       function(resource, ctx) -> data, text: what the service itself keeps in a resource, as resource.data,
---                when it is to be another; text: for an event, or nil. On the leader, whenever something about it may
---                have changed: nodes, what they say. ctx: {nodes = by id, states = by node id, now}; must not wait
---   proposals    name -> function(resource, ctx, body) -> data, text | nil, err: what a node that has the resource
---                asks for by ctx.propose(name, body), in reconcile. On the leader. ctx: as in decide, and node_id: who
---                asks
---   leave        function(ctx): this node is out of the cluster for good: nothing may go on
---   stop         function(ctx): the daemon ends
---   calls        name -> function(ctx, body) -> answer | nil, err: what managers may ask of a worker, in a task
---   commands     as in a command's module: `symphony KIND ...`
---   complete     as in a command's module, for all of them
---   status       function(resource) -> text: how it is, in a few words, for lists
--- See docs/services.md.
local built_in = require "symphony.services.built_in"
local schema = require "symphony.services.schema"

local M = {}

local NAME = "^%l[%l%d%-]*$"
local NAME_MAX = 32
local FUNCTIONS = { "validate", "place", "reconcile", "actual", "decide", "leave", "stop", "status" }
local OF_RESOURCE = { "validate", "place", "reconcile", "actual", "decide", "status" }
local ONE_OF = { rollout = { all = true, rolling = true },
  move = { ["stop-first"] = true, ["start-first"] = true } }

local own, list, by_kind, by_resource = {}, nil, {}, {}

local function check_choices(t, what)
  for field, words in pairs(ONE_OF) do
    if t[field] ~= nil and not words[t[field]] then error(("%s: there is no %s \"%s\""):format(what, field,
      tostring(t[field])), 0) end
  end
  if t.placed ~= nil and type(t.placed) ~= "boolean" then error(what .. ": placed is true or false", 0) end
end

local function check_functions(t, names, what)
  for _, name in ipairs(names) do
    if t[name] ~= nil and type(t[name]) ~= "function" then error(("%s: %s is no function"):format(what, name), 0) end
  end
end

local function check(service)
  local kind = service.kind
  if type(kind) ~= "string" or not kind:find(NAME) or #kind > NAME_MAX then
    error("kind is the service's name: a-z, 0-9 and -, beginning with a letter", 0)
  end
  if service.summary ~= nil and type(service.summary) ~= "string" then error("summary is no string", 0) end
  if type(service.resources) ~= "table" or next(service.resources) == nil then error("it has no resources", 0) end
  check_functions(service, FUNCTIONS, kind)
  check_choices(service, kind)
  for name, resource in pairs(service.resources) do
    if type(name) ~= "string" or not name:find(NAME) or #name > NAME_MAX then
      error(("\"%s\" is no name of a kind of resource"):format(tostring(name)), 0)
    end
    if name == "node" or name == "kv" then error(("resources cannot be called \"%s\""):format(name), 0) end
    if type(resource) ~= "table" then error(name .. " is a table", 0) end
    schema.check_schema(resource.schema or {}, name)
    check_functions(resource, OF_RESOURCE, name)
    check_choices(resource, name)
    local function has(what) return resource[what] or service[what] end
    local placed = resource.placed
    if placed == nil then placed = service.placed end
    if placed ~= false and not (has "reconcile" and has "actual") then
      error(name .. ": it has no reconcile and actual", 0)
    end
  end
  for _, field in ipairs { "calls", "proposals" } do
    for name, fn in pairs(service[field] or {}) do
      if type(name) ~= "string" or not name:find(NAME) or type(fn) ~= "function" then
        error(field .. " are functions", 0)
      end
    end
  end
  if service.commands ~= nil and type(service.commands) ~= "table" then error("commands is no table", 0) end
end

--- Is @service one? true; nil, why not.
function M.check(service)
  local ok, why = pcall(check, service)
  if not ok then return nil, why end
  return true
end

--- Why @service cannot be added to @rows ({{module, file}, ...}); nil: it can.
function M.clash(rows, service)
  for _, row in ipairs(rows) do
    if row.module.kind == service.kind then
      return ("\"%s\" is a service already, of %s"):format(service.kind, row.file)
    end
    for name in pairs(service.resources) do
      if row.module.resources[name] then
        return ("\"%s\" is a kind of resource already, of %s"):format(name, row.file)
      end
    end
  end
end

--- Those that are part of symphony: {{module, file}, ...}.
function M.built_in()
  local rows = {}
  for i, name in ipairs(built_in) do rows[i] = { module = require(name), file = "symphony itself" } end
  return rows
end

local function build()
  list, by_kind, by_resource = M.built_in(), {}, {}
  table.move(own, 1, #own, #list + 1, list)
  for _, row in ipairs(list) do
    by_kind[row.module.kind] = row.module
    for resource in pairs(row.module.resources) do by_resource[resource] = row.module end
  end
end

--- The operator's services are these from now on: {{module, file}, ...}, each checked.
function M.set_own(rows)
  own, list = rows, nil
end

--- All: {{module, file}, ...}.
function M.list()
  if not list then build() end
  return list
end

--- The service @kind; nil if it is not known here.
function M.get(kind)
  M.list()
  return by_kind[kind]
end

--- The service of resources of @kind, and what it says of that kind; nil if none is known here.
function M.of(kind)
  M.list()
  local service = by_resource[kind]
  return service, service and service.resources[kind]
end

--- What the service of resources of @kind has as @field for them; nil.
function M.field(kind, field)
  local service, resource = M.of(kind)
  if not service then return nil end
  local value = resource[field]
  if value == nil then value = service[field] end
  return value
end

return M
