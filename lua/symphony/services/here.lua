--- The services of this worker: those that are known, and those whose module was taken away while there was something
--- of theirs. Such a one goes on with what there is until that is gone, and gets nothing new: the worker's record does
--- not list it.
local log = require "sym.log"
local registry = require "symphony.services.registry"

local M = {}

local known = {}   -- kind -> module: those of the last look
local leaving = {} -- the same, of those that are not in the registry any more

--- Looks at the registry: what was taken away since the last look is leaving.
function M.look()
  local before = known
  known = {}
  for _, row in ipairs(registry.list()) do
    known[row.module.kind], leaving[row.module.kind] = row.module, nil
  end
  for kind, module in pairs(before) do
    if not known[kind] then leaving[kind] = module end
  end
end

--- The leaving service @kind has nothing here any more.
function M.forget(kind)
  if leaving[kind] then log.info(("services: there is nothing of %s here any more"):format(kind)) end
  leaving[kind] = nil
end

--- As if nothing had been taken away.
function M.reset()
  leaving = {}
  M.look()
end

--- The service @kind; nil. And whether it is leaving.
function M.get(kind)
  local module = registry.get(kind)
  if module then return module, false end
  return leaving[kind], leaving[kind] ~= nil
end

--- The service of resources of @kind; nil. And whether it is leaving.
function M.of(kind)
  local module = registry.of(kind)
  if module then return module, false end
  for _, other in pairs(leaving) do
    if other.resources[kind] then return other, true end
  end
end

--- What the service @module has as @field for its resources of @kind; nil.
function M.field(module, kind, field)
  local value = module.resources[kind][field]
  if value == nil then value = module[field] end
  return value
end

--- All: modules.
function M.list()
  local list = {}
  for _, row in ipairs(registry.list()) do list[#list + 1] = row.module end
  for _, module in pairs(leaving) do list[#list + 1] = module end
  return list
end

--- The names of those that are leaving, sorted.
function M.leaving()
  local list = {}
  for kind in pairs(leaving) do list[#list + 1] = kind end
  table.sort(list)
  return list
end

return M
