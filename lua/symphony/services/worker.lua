--- The services of this worker: makes what is here be what is assigned, resource by resource, and tells the managers
--- how that stands. Each resource has one task at a time, whatever comes meanwhile; what fails is tried again.
local agent = require "symphony.cluster.agent"
local async = require "symphony.async"
local errors = require "symphony.errors"
local here = require "symphony.services.here"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local log = require "sym.log"
local outbox = require "symphony.services.outbox"
local registry = require "symphony.services.registry"
local sys = require "sym.sys"
local uv = require "luv"

local M = {
  backoff_ms = 500,         -- after the first failure; doubled with each
  backoff_max_ms = 30000,
}

local RESYNC_MS = 20000     -- everything is looked at so often
local RECONCILE_MS = 300000 -- a step that takes longer has failed
local TASKS_MAX = 16        -- at one time
local FAILED_AFTER = 3      -- failures in a row are told as such
local STOP_MS = 5000        -- for a service to end with the daemon

local items = {}            -- "kind/id" -> {kind, id, dirty, busy, failures, timer}
local memory = {}           -- service -> a table that stays over a reload
local serving = false
local known = false         -- the managers have said once what is assigned
local epoch                 -- of the cluster, when all was told last
local busy, waiting = 0, {}
local hooked, resync = false, nil
local figures = { reconciles = 0, failures = 0 }

-- What services are given --------------------------------------------------------------------------------------------

local function folder(service)
  local base = identity.path("services")
  for _, path in ipairs { base, base .. "/" .. service.kind } do
    local ok, err = sys.mkdir(path, tonumber("700", 8))
    if not ok and err.code ~= "exists" then
      error(errors.new(err.code, ("cannot make %s: %s"):format(path, err.message)), 0)
    end
  end
  return base .. "/" .. service.kind
end

--- What a function of @service gets: {service, kind, id, dir (its folder), memory (a table that stays over reloads),
--- node = {node_id, name}, wake(id [, kind]): have it looked at now; in reconcile alone report(status), and
--- propose(name, body): asks the leader for another data, which it returns; nil, err}.
function M.context(service, kind, id)
  memory[service.kind] = memory[service.kind] or {}
  local me, v = identity.me or {}, agent.view()
  return {
    service = service.kind, kind = kind, id = id, dir = folder(service), memory = memory[service.kind],
    node = { node_id = me.node_id, name = v and v.node and v.node.name or me.name },
    wake = function(which, of_kind) M.wake(of_kind or kind, which) end,
  }
end

-- Telling the managers -----------------------------------------------------------------------------------------------

-- Notes how it stands with @item, which is as @desired says.
local function note(item, desired, status)
  if not serving then return end -- it has stopped meanwhile
  if not desired then return outbox.forget(item.key) end
  outbox.note(item.key, { kind = item.kind, id = item.id, uid = desired.uid, generation = desired.generation,
    state = tostring(status.state or "running"), message = status.message and outbox.words(status.message) or nil,
    detail = status.detail })
end

-- Reconciling --------------------------------------------------------------------------------------------------------

local run_next

local function desired_of(item)
  local v = agent.view()
  local value = v and v.assigned and v.assigned[item.key]
  if type(value) ~= "table" or type(value.spec) ~= "table" or type(value.uid) ~= "string" then return nil end
  return { kind = item.kind, id = item.id, uid = value.uid, generation = value.generation, spec = value.spec,
    data = value.data ~= json.null and value.data or nil }
end

local function actual_of(service, kind)
  local actual = here.field(service, kind, "actual")
  local list = actual(M.context(service, kind))
  if type(list) ~= "table" then error(("actual of %s gave no table"):format(kind), 0) end
  return list
end

-- One step with @item. Its status, or nil when it is gone; nil, err.
local function step(item, desired)
  local service, is_leaving = here.of(item.kind)
  if not service then
    if not desired then return nil end
    return { state = "failed", message = ("this worker has not got the service of %s: its file belongs into the " ..
      "--lua-dir there; then `symphony reload`"):format(item.kind) }
  end
  local present = actual_of(service, item.kind)[item.id]
  if not desired and present == nil then return nil end
  local ctx = M.context(service, item.kind, item.id)
  function ctx.report(status)
    if desired then note(item, desired, status) end
  end
  function ctx.propose(name, body)
    if not desired then return nil, errors.new("invalid", "it is not assigned to this node") end
    local answer, err = agent.call("POST", "/v1/agent/propose", { kind = item.kind, id = item.id, uid = desired.uid,
      name = name, body = body or {} })
    if not answer then return nil, err end
    return answer.data
  end
  local fn = here.field(service, item.kind, "reconcile")
  local status, err = async.with_timeout(RECONCILE_MS, fn, ctx, desired, present)
  if status == nil and err ~= nil then return nil, errors.from(err) end
  if not desired then
    if actual_of(service, item.kind)[item.id] ~= nil then
      return nil, errors.new("busy", "it is still there")
    end
    return nil
  end
  status = type(status) == "table" and status or { state = "running" }
  if is_leaving then
    status.message = status.message or ("the service %s is not on this worker any more: this goes on until it is " ..
      "elsewhere, or removed"):format(service.kind)
  end
  return status
end

local function try_again(item)
  item.failures = item.failures + 1
  figures.failures = figures.failures + 1
  local ms = math.min(M.backoff_max_ms, M.backoff_ms * 2 ^ math.min(item.failures - 1, 16)) * (0.5 + math.random() / 2)
  item.timer = async.spawn(function()
    async.sleep(ms)
    item.timer = nil
    M.wake(item.kind, item.id)
  end)
end

local function reconcile(item)
  local desired = desired_of(item)
  figures.reconciles = figures.reconciles + 1
  local ok, status, err = xpcall(step, errors.handler, item, desired)
  if not ok then status, err = nil, status end
  if err and err.code == "canceled" then return end
  if err then
    if item.complaint ~= err.message then
      log.error(("services: %s: %s"):format(item.key, err.traceback or err.message))
    end
    item.complaint = err.message
    try_again(item)
    if desired then
      note(item, desired, { state = item.failures >= FAILED_AFTER and "failed" or "retrying", message = err.message })
    end
    return
  end
  item.failures, item.complaint = 0, nil
  note(item, desired, status)
  if not desired and not item.dirty then items[item.key] = nil end
end

local function run(item)
  busy, item.busy = busy + 1, true
  local _ <close> = setmetatable({}, { __close = function()
    busy, item.busy = busy - 1, false
    run_next()
  end })
  while item.dirty and serving do
    item.dirty = false
    reconcile(item)
    if item.timer then break end -- it has failed: after the pause
  end
end

function run_next()
  while serving and busy < TASKS_MAX and #waiting > 0 do
    local item = table.remove(waiting, 1)
    item.queued = false
    if not item.busy and item.dirty then async.spawn(run, item) end
  end
end

-- Has it looked at soon: at once, or when the tasks that there are let it.
local function start(item)
  item.dirty = true
  if item.timer then
    item.timer:cancel()
    item.timer = nil
  end
  if item.busy or item.queued or not serving then return end
  item.queued = true
  waiting[#waiting + 1] = item
  run_next()
end

--- Has the resource looked at now. Before the managers have said what is assigned, nothing is done.
function M.wake(kind, id)
  if not serving or not known then return end
  local key = kind .. "/" .. id
  items[key] = items[key] or { key = key, kind = kind, id = id, failures = 0 }
  start(items[key])
end

local function wake_key(key)
  local kind, id = key:match("^(%l[%l%d%-]*)/(%w[%w%._%-]*)$") -- services may make paths of them
  if kind then M.wake(kind, id) end
end

-- Is anything assigned to this node that is the work of @service?
local function is_assigned(service)
  for key in pairs(agent.view().assigned) do
    local kind = key:match("^([^/]+)/")
    if kind and here.of(kind) == service then return true end
  end
  return false
end

-- Looks at what there is of @service. True: there is something, or that cannot be told.
local function look_at(service)
  local some = false
  for kind in pairs(service.resources) do
    local is_work = here.field(service, kind, "placed") ~= false -- else what is here is of another kind
    if is_work and here.of(kind) == service and here.field(service, kind, "actual") then
      local ok, list = xpcall(actual_of, errors.handler, service, kind)
      if not ok then
        log.error(("services: what there is of %s: %s"):format(kind, list.traceback or list.message))
      end
      some = some or not ok or next(list) ~= nil
      for id in pairs(ok and list or {}) do M.wake(kind, id) end
    end
  end
  return some
end

--- Looks at everything that is assigned, and at everything that is here.
function M.look_at_all()
  if not serving or not known then return end
  for key in pairs(agent.view().assigned) do wake_key(key) end
  for _, service in ipairs(here.list()) do
    local some = look_at(service)
    if select(2, here.get(service.kind)) and not some and not is_assigned(service) then here.forget(service.kind) end
  end
end

-- To the end: libuv keeps the last name for good when nobody asks behind it.
local function names_in(path)
  local scan, names = uv.fs_scandir(path), {}
  while scan do
    local name = uv.fs_scandir_next(scan)
    if not name then break end
    names[#names + 1] = name
  end
  return names
end

-- Tells of what services have left here that this worker has not got: nobody ends it.
local function tell_of_unknown()
  local base = identity.path("services")
  for _, kind in ipairs(names_in(base)) do
    if not here.get(kind) and #names_in(base .. "/" .. kind) > 0 then
      log.warn(("services: this worker has not got the service %s: nobody looks after what there is of it here, and " ..
        "nobody ends it. Put its file back into the --lua-dir, and `symphony reload`"):format(kind))
    end
  end
end

-- Life ---------------------------------------------------------------------------------------------------------------

local function on_agent(what, key)
  if not serving then return end
  if what == "assigned" then
    if known then wake_key(key) end
  elseif what == "synced" then
    known = true
    local v = agent.view()
    local now = v.cluster and v.cluster.epoch or 0
    if epoch ~= now then -- the state may be another one than that which was told
      epoch = now
      outbox.again()
    end
    outbox.wake()
    M.look_at_all()
  end
end

-- Calls @name of every service that has it. In a task.
local function call_all(name, ms)
  local fns = {}
  for _, service in ipairs(here.list()) do
    local fn = service[name]
    if fn then
      fns[#fns + 1] = function()
        local ok, done, err = xpcall(async.with_timeout, errors.handler, ms, fn, M.context(service))
        if not ok then done, err = nil, done end
        if done == nil and err then
          log.error(("services: %s of %s: %s"):format(name, service.kind, err.traceback or err.message))
        end
      end
    end
  end
  async.gather(fns)
end

--- The names that this worker's record lists: the word of its command line, and its own services.
function M.names()
  local list, seen = {}, {}
  local function add(name)
    if not seen[name] then list[#list + 1] = name end
    seen[name] = true
  end
  add(identity.word())
  for _, row in ipairs(registry.list()) do add(row.module.kind) end
  table.sort(list)
  return json.array(list)
end

--- This node has begun to serve.
function M.start()
  if not hooked then
    hooked = true
    agent.on(on_agent)
  end
  if serving then return end
  serving, known, epoch = true, false, nil
  here.reset()
  tell_of_unknown()
  outbox.start()
  resync = async.every(RESYNC_MS, M.look_at_all)
end

-- Nothing is begun any more. What runs goes on: a service that is cut off between two steps of its own, other than by
-- the end of the process, may not know any more what it has begun.
local function halt()
  serving, known = false, false
  outbox.stop()
  if resync then resync.stop() end
  resync, waiting = nil, {}
  for _, item in pairs(items) do
    item.queued = false
    if item.timer then item.timer:cancel() end
    item.timer = nil
  end
end

--- It serves no more. In a task.
function M.stop()
  if not serving then return end
  halt()
  call_all("stop", STOP_MS)
  outbox.clear()
  items = {}
end

--- It is out of the cluster for good: nothing that it did for it may go on. In a task.
function M.leave()
  halt()
  call_all("leave", RECONCILE_MS)
  outbox.clear()
  items = {}
end

--- The services may be others now.
function M.reloaded()
  if not serving then return end
  here.look()
  M.look_at_all()
  for _, kind in ipairs(here.leaving()) do -- those of which there is something
    log.warn(("services: %s is not here any more: what there is of it goes on until it is elsewhere, or removed")
      :format(kind))
  end
  tell_of_unknown()
  async.spawn(function()
    local ok, err = require("symphony.cluster.worker").report()
    if not ok and err.code ~= "closed" then log.warn("cannot report to the managers: " .. err.message) end
    require("symphony.cluster.gossip").announce()
  end)
end

--- For `block status` and /metrics: {resources, states = {state = count}, unsent, reconciles, failures}.
function M.figures()
  local list, unsent = outbox.list()
  local out = { resources = 0, states = {}, unsent = unsent, reconciles = figures.reconciles,
    failures = figures.failures }
  for _, status in pairs(list) do
    out.resources = out.resources + 1
    out.states[status.state] = (out.states[status.state] or 0) + 1
  end
  return out
end

return M
