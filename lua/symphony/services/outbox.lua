--- What a worker tells the managers of its resources (POST /v1/agent/status): kept until one of them has it.
local agent = require "symphony.cluster.agent"
local async = require "symphony.async"
local errors = require "symphony.errors"
local json = require "symphony.json"
local log = require "sym.log"

local M = {
  pause_ms = 500,     -- between tries; doubled with each, but for those that find out what is not taken
}

local PAUSE_MAX_MS = 15000
local ITEMS_MAX = 32  -- in a report, see report.lua
local WORDS_MAX = 480 -- bytes of a message, which may get some more where it is cut

local said, unsent = {}, {} -- "kind/id" -> {status, text, replaced}: what was last found; true where they lack that
local sending = async.event()
local task

--- @message, as what is sent may have it: a text of which too much is cut.
function M.words(message)
  return json.clean(json.clean(tostring(message)):sub(1, WORDS_MAX))
end

-- At most @most of what is to be sent, and of each its text; nil: nothing.
local function next_batch(most)
  local list, texts = json.array {}, {}
  for key in pairs(unsent) do
    if #list >= most then break end
    list[#list + 1] = said[key].status
    texts[key] = said[key].text
  end
  return #list > 0 and list or nil, texts
end

-- They have what @texts tells, or it cannot be told.
local function settle(texts)
  for key, text in pairs(texts) do
    if said[key] and said[key].text == text then unsent[key] = nil end
  end
end

-- The one status in @texts is none that they take: they are told that instead.
local function replace(texts, err)
  local key, text = next(texts)
  local row = said[key]
  log.error(("services: the managers do not take the status of %s: %s"):format(key, err.message))
  if not row or row.text ~= text then return end -- it is another one by now
  if row.replaced then return settle(texts) end
  local old = row.status
  row.replaced, row.status = true, { kind = old.kind, id = old.id, uid = old.uid, generation = old.generation,
    state = "failed", message = M.words("its status is not one: " .. err.message) }
end

local function loop()
  local pause, most = M.pause_ms, ITEMS_MAX
  while true do
    local v = agent.view()
    local list, texts
    if v and v.synced then list, texts = next_batch(most) end
    if not list then
      sending:wait()
    else
      local answer, err = agent.call("POST", "/v1/agent/status", { status = list })
      if answer then
        settle(texts)
        pause, most = M.pause_ms, math.min(ITEMS_MAX, 2 * most)
      elseif err.code == "invalid" or err.code == "too_big" then
        -- One that is not taken must not keep the others back: it is looked for by halves.
        most = math.max(1, #list // 2)
        if #list == 1 then replace(texts, err) end
        async.sleep(M.pause_ms * (0.5 + math.random()))
      else
        log.debug("services: cannot report: " .. err.message)
        async.sleep(pause * (0.5 + math.random()))
        pause = math.min(2 * pause, PAUSE_MAX_MS)
      end
    end
  end
end

--- How it stands with "kind/id" @key: @status, as report.lua takes it. The same again is no news.
function M.note(key, status)
  local ok, text = pcall(json.encode, status)
  if not ok then
    log.error(("services: the status of %s cannot be sent: %s"):format(key, errors.from(text).message))
    return
  end
  if said[key] and said[key].text == text then return end
  said[key] = { status = status, text = text }
  unsent[key] = true
  sending:set()
end

--- There is nothing to say of @key any more.
function M.forget(key)
  said[key], unsent[key] = nil, nil
end

--- The managers may not have what they were told.
function M.again()
  for key in pairs(said) do unsent[key] = true end
  sending:set()
end

--- The managers can be reached again.
function M.wake()
  sending:set()
end

--- "kind/id" -> how it was last found, and how many of these the managers lack.
function M.list()
  local out, count = {}, 0
  for key, row in pairs(said) do out[key] = row.status end
  for _ in pairs(unsent) do count = count + 1 end
  return out, count
end

--- Runs until stop(); said twice, it is one.
function M.start()
  task = task or async.spawn(loop)
end

function M.stop()
  if task then task:cancel() end
  task = nil
end

--- Forgets everything.
function M.clear()
  said, unsent = {}, {}
end

return M
